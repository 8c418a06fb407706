//! Slurm's words for why a job waits or is refused, in plain ones, with what to change.
//!
//! The words are those of `slurm_protocol_defs.c` (`job_reason_string`) and `slurm_errno.c`, from 20.11 to 24.11.

use super::super::Reason;
use super::super::commands::tail;

/// What helps against the limits of an account.
const NARROWER: &str = "ask for less in the target's definition or in the cell's `resources`, or take another `partition`, `qos` or `account`";

/// Reasons for which waiting helps, with what they mean.
const PATIENT: [(&str, &str); 23] = [
    ("Resources", "all nodes that would do are busy"),
    ("Priority", "jobs of higher priority go first"),
    ("BeginTime", "its time to begin has not come"),
    ("Dependency", "it waits for the jobs that it depends on"),
    ("Licenses", "it waits for a licence"),
    ("Reservation", "its reservation has not begun"),
    ("NodeDown", "a node that it needs is down"),
    (
        "PartitionDown",
        "the partition is closed by the administrators",
    ),
    ("PartitionInactive", "the partition starts no jobs for now"),
    ("Cleaning", "its nodes are being cleaned up"),
    ("Prolog", "its nodes are made ready"),
    (
        "ReqNodeNotAvail",
        "nodes that it needs are down, in maintenance or reserved",
    ),
    (
        "Nodes required for job are DOWN",
        "nodes that it needs are down, in maintenance or reserved",
    ),
    (
        "JobArrayTaskLimit",
        "as many tasks of the array run as may at a time",
    ),
    ("PowerNotAvail", "there is no power for more nodes"),
    ("PowerReserved", "power is reserved for others"),
    ("FrontEndDown", "no front-end node is available"),
    (
        "BurstBufferResources",
        "there is no room in the burst buffer",
    ),
    (
        "BurstBufferStageIn",
        "files are brought to the burst buffer",
    ),
    ("SchedDefer", "the scheduler puts jobs off for now"),
    (
        "FedJobLock",
        "another cluster of the federation considers it",
    ),
    (
        "AssociationJobLimit",
        "as many jobs of your account run as may",
    ),
    (
        "AssociationResourceLimit",
        "a limit of your account is reached; it starts when other jobs of it end",
    ),
];

/// Reasons for which waiting does not help, with what they mean and what to change.
const HOPELESS: [(&str, &str, &str); 23] = [
    (
        "PartitionTimeLimit",
        "it asks for more time than the partition gives",
        "lower `time`, or take another `partition`",
    ),
    (
        "PartitionNodeLimit",
        "it asks for more nodes than the partition gives",
        "lower `nodes`, or take another `partition`",
    ),
    (
        "PartitionConfig",
        "the partition cannot give what it asks for",
        "lower `nodes`, `cpus`, `memory` or `gpus`, or take another `partition`",
    ),
    (
        "BadConstraints",
        "no node has what it asks for",
        "change `constraint`, `gres` or `gpus`",
    ),
    (
        "DependencyNeverSatisfied",
        "what it depends on has failed",
        "change `dependency` among the `options`",
    ),
    (
        "DeadLine",
        "it cannot end by its deadline",
        "change `deadline` among the `options`",
    ),
    (
        "JobHeldUser",
        "it is held, by you",
        "release it with `scontrol release`, or take `hold` out of the `options`",
    ),
    (
        "JobHeldAdmin",
        "it is held by the administrators",
        "ask them why",
    ),
    (
        "JobHoldMaxRequeue",
        "it was put back into the queue too often, and is held",
        "tell the cluster's administrators",
    ),
    (
        "InvalidAccount",
        "there is no such account",
        "change `account`",
    ),
    (
        "InvalidQOS",
        "there is no such quality of service",
        "change `qos`",
    ),
    (
        "QOSNotAllowed",
        "you may not use this quality of service here",
        "change `qos` or `partition`",
    ),
    (
        "QOSUsageThreshold",
        "you have used more than this quality of service allows",
        "change `qos` or `account`",
    ),
    (
        "AccountNotAllowed",
        "your account may not use this partition",
        "change `account` or `partition`",
    ),
    (
        "AccountingPolicy",
        "it asks for more than your account may have",
        NARROWER,
    ),
    (
        "AssociationTimeLimit",
        "it asks for more time than your account may have",
        "lower `time`, or take another `account`",
    ),
    (
        "MaxMemPerLimit",
        "it asks for more memory than the partition gives for a CPU or a node",
        "lower `memory`, raise `cpus`, or take another `partition`",
    ),
    (
        "ReservationDeleted",
        "its reservation is gone",
        "change `reservation` among the `options`",
    ),
    (
        "JobLaunchFailure",
        "its nodes could not start it",
        "tell the cluster's administrators",
    ),
    (
        "launch failed requeued held",
        "its nodes could not start it, and it is held",
        "tell the cluster's administrators",
    ),
    (
        "user env retrieval failed requeued held",
        "your login environment could not be had on its node, and it is held",
        "take `export` and `get-user-env` out of the `options`",
    ),
    (
        "job requeued in held state",
        "it is held after a fault",
        "release it with `scontrol release`",
    ),
    (
        "SystemFailure",
        "Slurm itself failed",
        "tell the cluster's administrators",
    ),
];

/// Why a job waits, by squeue's word.
pub fn waiting(code: &str) -> Option<Reason> {
    if code.is_empty() || code == "None" {
        return None;
    }
    // Some go on with details: `ReqNodeNotAvail, UnavailableNodes:node7`. scontrol writes `_` for a space.
    let spaced = code.replace('_', " ");
    let is = |known: &str| {
        spaced
            .strip_prefix(known)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([',', ' ', '(', ':']))
    };
    let hopeless = HOPELESS.iter().find(|(known, ..)| is(known));
    let patient = PATIENT.iter().find(|(known, _)| is(known));
    let (meaning, remedy) = match (hopeless, patient) {
        (Some((_, meaning, remedy)), _) => (Some(*meaning), Some(*remedy)),
        (None, Some((_, meaning))) => (Some(*meaning), None),
        (None, None) => limit(code),
    };
    Some(Reason {
        code: code.to_owned(),
        meaning,
        remedy,
    })
}

/// The limits of accounts and qualities of service, of which there are some two hundred: `AssocGrpCpuLimit`,
/// `QOSMaxGRESPerUser`, `MaxJobsPerAccount`.
fn limit(code: &str) -> (Option<&'static str>, Option<&'static str>) {
    let has = |word: &str| code.contains(word);
    let account = code.starts_with("Assoc") || code.starts_with("QOS");
    let accounts = code.starts_with("Max") && has("PerAccount");
    if !account && !accounts {
        return (None, None);
    }
    if has("PerJob") || has("WallDuration") {
        let meaning = "it asks for more than your account or `qos` allows for one job";
        (Some(meaning), Some(NARROWER))
    } else if code.starts_with("QOSMin") {
        let meaning = "it asks for less than the `qos` demands";
        (Some(meaning), Some("ask for more, or take another `qos`"))
    } else if (has("Minutes") || has("GrpWall")) && !has("RunMinutes") {
        let meaning = "what your account or `qos` may use in this period is used up";
        (Some(meaning), Some("take another `account` or `qos`"))
    } else {
        let meaning = "a limit of your account or `qos` is reached; it starts when other jobs of it end, and never if there \
            are none: ask for less then";
        (Some(meaning), None)
    }
}

/// Whether a job with this reason would start if nodes were free.
pub fn is_in_line(code: &str) -> bool {
    match code {
        "BeginTime" | "Dependency" | "Licenses" | "Reservation" => false,
        _ => waiting(code).is_none_or(|reason| reason.remedy.is_none()),
    }
}

/// What sbatch says when it refuses a job, in lower case, and what to change. The first that fits counts.
const REFUSALS: [(&str, &str); 22] = [
    (
        "invalid account or account/partition",
        "change `account`: `sacctmgr show associations user=$USER` lists yours",
    ),
    (
        "invalid qos",
        "change `qos`: `sacctmgr show associations user=$USER` lists yours",
    ),
    (
        "invalid partition",
        "change `partition`: `sinfo` lists them",
    ),
    (
        "requested partition configuration not available",
        "change `partition`, or what is asked for",
    ),
    (
        "group not permitted to use this partition",
        "take another `partition`",
    ),
    (
        "required partition not available",
        "the partition is closed; take another `partition`, or wait",
    ),
    ("time limit is invalid", "lower `time`"),
    ("invalid --time", "change `time`"),
    (
        "memory specification can not be satisfied",
        "lower `memory`: no node has so much",
    ),
    (
        "cpu count per node can not be satisfied",
        "lower `cpus` or `ranks`, or ask for more `nodes`: no node has so many CPUs",
    ),
    (
        "generic resource",
        "change `gpus` or `gres`: `sinfo -o %G` lists what there is",
    ),
    (
        "requested gres",
        "change `gpus` or `gres`: `sinfo -o %G` lists what there is",
    ),
    (
        "invalid feature",
        "change `constraint`: `sinfo -o %f` lists the features",
    ),
    ("node count specification invalid", "change `nodes`"),
    (
        "node configuration is not available",
        "lower `nodes`, `cpus`, `ranks`, `memory` or `gpus`, or change `constraint`: no node of the partition has all of it",
    ),
    (
        "more processors requested",
        "lower `cpus`, `ranks` or `nodes`",
    ),
    ("job violates accounting/qos policy", NARROWER),
    (
        "job limit",
        "end some of your other jobs, or change `qos` or `account`",
    ),
    (
        "access/permission denied",
        "you may not submit there; change `partition`, `qos` or `account`",
    ),
    ("unrecognized option", "take it out of the `options`"),
    (
        "establish a configuration source",
        "this host belongs to no cluster; name one that does as `login`",
    ),
    (
        "invalid reservation",
        "change `reservation` among the `options`",
    ),
];

/// The limit on a user's jobs that wait and run, if sbatch names one: `AssocMaxSubmitJobLimit`, `QOSMaxSubmitJobPerUserLimit`.
pub fn crowded(stderr: &str) -> Option<&str> {
    let mut words = stderr.split(|c: char| !c.is_ascii_alphanumeric());
    words.find(|word| word.contains("SubmitJob"))
}

/// What to change after a refusal.
pub fn remedy(stderr: &str) -> Option<&'static str> {
    let stderr = stderr.to_lowercase();
    REFUSALS
        .iter()
        .find(|(words, _)| stderr.contains(words))
        .map(|(_, remedy)| *remedy)
}

/// What sbatch said, without what it says each time.
pub fn said(stderr: &str) -> String {
    let words: Vec<&str> = stderr
        .lines()
        .map(|line| {
            line.trim()
                .trim_start_matches("sbatch: ")
                .trim_start_matches("error: ")
                .trim_start_matches("Batch job submission failed: ")
        })
        .filter(|line| !line.is_empty() && !line.starts_with("Try \"sbatch --help\""))
        .collect();
    match tail(&words.join("\n"), 4) {
        said if said.is_empty() => "it said nothing".to_owned(),
        said => said.replace('\n', "; "),
    }
}
