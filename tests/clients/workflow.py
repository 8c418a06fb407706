"""One notebook over home, an ssh host and a Slurm cluster: a diamond, an MPI step over two nodes, and GPUs."""

from client import on

BIG = on("big")
RANKS = on("big", resources={"ranks": 4, "nodes": 2})
GPU = on("big", resources={"gpus": 1})

CELLS = [
    ("import os\nimport numpy as np\nbase = np.arange(6.0)\nlog = []", {}),
    ("shared = {'all': base, 'log': log}\nlog.append('lab')", on("lab")),
    ("left = base.sum() + len(log)\nleft_at = os.uname().nodename", BIG),
    ("right = float((base * 2).max())\nright_at = os.uname().nodename", BIG),
    ("both = left + right\nprint(both)", {}),
    (
        "from mpi4py import MPI\nworld = MPI.COMM_WORLD\nmine = both * world.rank\ntotal = world.allreduce(mine)\n"
        "nodes = len(set(world.allgather(os.uname().nodename)))",
        RANKS,
    ),
    ("device = os.environ['CUDA_VISIBLE_DEVICES']\nlog.append('gpu')", GPU),
    ("print(total, nodes, device in ('0', '1'), log, shared['log'] is log, shared['all'] is base)", {}),
]

LAST = "156.0 2 True ['lab', 'gpu'] True True\n"


def targets(cluster):
    """Where it runs."""
    return {
        "lab": {"type": "ssh", "host": "lab", "python": cluster.python},
        "big": {"type": "slurm", "login": "login", "python": cluster.python, "nodes": 3, "cpus": 2, "gpus": 2},
    }
