"""What a test asks a cluster about its jobs."""

from processes import wait_until


def open_jobs(cluster):
    """The numbers of all jobs that have not ended."""
    listed = cluster.slurm("squeue -h -o %A -t PENDING,RUNNING,SUSPENDED,CONFIGURING", user=None)
    return [int(number) for number in listed.split()]


def no_jobs(cluster, seconds=10):
    """Waits until every job has ended."""
    wait_until(lambda: open_jobs(cluster) == [], seconds, lambda: f"jobs: {cluster.slurm('squeue')}")
