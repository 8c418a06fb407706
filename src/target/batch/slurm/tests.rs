//! What Slurm says, as recorded, and what we make of it.

use std::num::NonZeroU32;

use super::*;
use crate::cell::resources::Memory;
use crate::target::batch::commands::fake::Fake;
use crate::target::batch::request::Gpus;
use crate::target::batch::{End, Who};

/// As squeue 22.05 prints it.
const QUEUE: &str = "\
2|PENDING|Resources|4294901758|1795303816|1795304116|batch|
3|PENDING|BeginTime|4294901757|1795306815|1795307115|batch|
6|PENDING|Dependency|4294901755|N/A|N/A|batch|
4|PENDING|JobHeldUser|0|N/A|N/A|batch|
1|RUNNING|None|4294901759|1795303216|1795303816|batch|node[1-3]
5|PENDING|PartitionTimeLimit|4294901756|N/A|N/A|short|
7_[1-9]|PENDING|Priority|4294901750|N/A|N/A|batch,short|
8|PENDING|ReqNodeNotAvail, UnavailableNodes:node7|4294901749|N/A|N/A|batch|
9|CANCELLED|None|1|1795303216|1795303218|batch|node1
10|COMPLETING|None|1|1795303216|1795303218|batch|node1
11|CONFIGURING|None|1|1795303216|1795303218|batch|cloud[1-2]
";

const JOB: &str = "JobId=17 JobName=cellferry-0123456789 UserId=alice(2001) GroupId=alice(2001) MCS_label=N/A \
    Priority=4294901759 Nice=0 Account=default QOS=normal JobState=STATE Reason=None Dependency=(null) Requeue=0 \
    Restarts=0 BatchFlag=1 Reboot=0 ExitCode=CODE RunTime=00:00:02 TimeLimit=00:10:00 EndTime=1795303218 \
    NodeList=node[1-3] BatchHost=node1 Power= ";

fn id(number: &str) -> JobId {
    JobId::new(number).unwrap()
}

fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

fn job(request: Request) -> Job {
    Job {
        key: JobKey::new(),
        request,
        script: "#!/bin/bash\ntrue\n".to_owned(),
        folder: "/home/alice/job".to_owned(),
    }
}

fn status(number: &str) -> Status {
    let rows = answers::rows(QUEUE);
    let row = rows.iter().find(|row| row.id == number).unwrap();
    row.status(Some(&rows))
}

fn line(number: &str) -> String {
    status(number).line(SYSTEM, &id(number))
}

#[test]
fn states_are_told_in_plain_words() {
    let start = line("2");
    assert!(
        start.starts_with(
            "Slurm job 2 waits (Resources: all nodes that would do are busy), number 1 in the queue, expected to start"
        ),
        "{start}"
    );
    assert_eq!(
        line("5"),
        "Slurm job 5 waits (PartitionTimeLimit: it asks for more time than the partition gives; lower `time`, or take another `partition`)"
    );
    assert!(
        line("8").contains("ReqNodeNotAvail, UnavailableNodes:node7: nodes that it needs are down")
    );
    assert!(line("1").starts_with("Slurm job 1 runs on node[1-3], until"));
    assert_eq!(status("9"), Status::Over);
    assert_eq!(status("10"), Status::Closing);
    assert_eq!(status("11"), Status::Starting);
}

#[test]
fn a_place_counts_those_that_could_go_first() {
    let place = |number: &str| match status(number) {
        Status::Waiting(waiting) => waiting.place,
        other => panic!("{other:?}"),
    };
    assert_eq!(place("2"), Some(1));
    // Behind job 2 and not behind those that could not start if they were first.
    assert_eq!(place("7_[1-9]"), Some(2));
    assert_eq!(place("8"), Some(3));
    assert_eq!(place("4"), None);
}

#[test]
fn limits_of_accounts_are_told_from_one_another() {
    let told = |code: &str| reasons::waiting(code).unwrap().to_string();
    assert!(told("AssocGrpCpuLimit").contains("it starts when other jobs of it end"));
    assert!(told("QOSMaxWallDurationPerJobLimit").contains("allows for one job; ask for less"));
    assert!(told("AssocGrpCPUMinutesLimit").contains("used up; take another `account`"));
    assert!(told("AssocGrpCPURunMinutesLimit").contains("it starts when"));
    assert!(told("QOSMinGRES").contains("ask for more"));
    assert!(told("MaxJobsPerAccount").contains("it starts when"));
    assert!(told("launch_failed_requeued_held").contains("could not start it"));
    assert_eq!(told("SomethingNew"), "SomethingNew");
    assert_eq!(reasons::waiting("None"), None);
}

#[test]
fn the_number_of_a_job_is_found_among_the_words_of_a_site() {
    assert_eq!(answers::submitted("17\n"), Some(id("17")));
    assert_eq!(answers::submitted("17;cluster\n"), Some(id("17")));
    assert_eq!(answers::submitted("Welcome!\n17\n\n"), Some(id("17")));
    assert_eq!(
        answers::submitted("17\nHave a nice day, 99 times.\n"),
        Some(id("17"))
    );
    assert_eq!(answers::submitted("Submitted batch job 17\n"), None);
    assert_eq!(answers::submitted(""), None);
}

#[test]
fn a_cluster_without_accounting_is_known_by_its_configuration() {
    let facts = |storage: &str, private: &str| {
        answers::facts(&format!(
            "Configuration data as of now\nAccountingStorageType   = {storage}\nPrivateData             = {private}\n"
        ))
    };
    assert!(facts("accounting_storage/slurmdbd", "none").accounting);
    assert!(!facts("accounting_storage/none", "none").accounting);
    assert!(!facts("(null)", "none").accounting);
    assert!(facts("accounting_storage/slurmdbd", "accounts,jobs,usage").private);
    assert!(!facts("accounting_storage/slurmdbd", "accounts").private);
}

fn ending(state: &str, code: &str, more: &str, log: &str) -> Ending {
    let controller = JOB.replace("STATE", state).replace("CODE", code);
    answers::Last::read(&format!(
        "me|2001\nscontrol|{controller}\n{more}log|\n{log}"
    ))
    .ending()
}

#[test]
fn endings_are_told_apart() {
    let end = |state: &str, code: &str| ending(state, code, "", "").end;
    assert_eq!(end("COMPLETED", "0:0"), End::Completed);
    assert_eq!(end("FAILED", "3:0"), End::Failed { code: 3 });
    assert_eq!(end("FAILED", "0:9"), End::Signalled { signal: 9 });
    assert_eq!(end("FAILED", "137:0"), End::Signalled { signal: 9 });
    assert_eq!(end("TIMEOUT", "0:15"), End::TimeOut);
    assert_eq!(end("OUT_OF_MEMORY", "0:125"), End::OutOfMemory);
    assert_eq!(end("NODE_FAIL", "0:0"), End::NodeFailed);
    assert_eq!(end("PREEMPTED", "0:15"), End::Preempted);
    assert_eq!(end("CANCELLED", "0:15"), End::Cancelled { by: None });
    assert_eq!(end("BOOT_FAIL", "0:0"), End::NotBooted);
    assert_eq!(end("DEADLINE", "0:0"), End::Deadline);
    assert_eq!(end("NEW_STATE", "0:0"), End::Unknown);
}

#[test]
fn accounting_says_who_cancelled() {
    let by = |who: &str| {
        ending(
            "CANCELLED",
            "0:15",
            &format!("sacct|CANCELLED by 1|0:15\nby|{who}\n"),
            "",
        )
        .end
    };
    assert_eq!(
        by("2001|alice"),
        End::Cancelled {
            by: Some(Who::Same)
        }
    );
    assert_eq!(
        by("2002|bob"),
        End::Cancelled {
            by: Some(Who::Other("bob".to_owned()))
        }
    );
    assert!(
        matches!(by("0|root"), End::Cancelled { by: Some(Who::Other(who)) } if who.contains("administrator"))
    );
    assert!(matches!(by("77|"), End::Cancelled { by: Some(Who::Other(who)) } if who == "user 77"));
}

#[test]
fn accounting_knows_what_the_controller_has_forgotten() {
    let answer = "me|2001\nscontrol|slurm_load_jobs error: Invalid job id specified\nsacct|TIMEOUT|0:0\nlog|\n";
    let last = answers::Last::read(answer);
    assert_eq!(last.away(), None);
    assert_eq!(
        (last.ending().end, last.ending().code.as_str()),
        (End::TimeOut, "TIMEOUT")
    );
}

#[test]
fn the_log_tells_what_nobody_else_remembers() {
    let forgotten = |log: &str| {
        let answer = format!(
            "me|2001\nscontrol|slurm_load_jobs error: Invalid job id specified\nlog|\n{log}"
        );
        answers::Last::read(&answer).ending()
    };
    let time = "slurmstepd-node1: error: *** JOB 19 ON node1 CANCELLED AT 2026-11-21T23:29:13 DUE TO TIME LIMIT ***\n";
    assert_eq!(forgotten(time).end, End::TimeOut);
    assert_eq!(forgotten("").end, End::Unknown);
    let memory = "srun: cluster configuration lacks support for cpu binding\n\
        slurmstepd-node1: error: StepId=17.0 exceeded memory limit (280403968 > 104857600), being killed\n";
    let ending = ending("FAILED", "137:0", "", memory);
    assert_eq!(ending.end, End::OutOfMemory);
    assert!(!ending.last_words.contains("cpu binding"));
    let kernel = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=17.0.\n";
    assert_eq!(forgotten(kernel).end, End::OutOfMemory);
}

#[test]
fn sbatch_is_asked_for_what_the_target_says() {
    let request = Request {
        partition: Some("gpu".to_owned()),
        account: Some("phys".to_owned()),
        qos: Some("long".to_owned()),
        time: Some(Duration::from_secs(129_600)),
        nodes: count(2),
        cpus: Some(count(4)),
        memory: Memory::parse("16G"),
        gpus: Some(Gpus {
            kind: Some("a100".to_owned()),
            count: count(2),
        }),
        gres: Some("nvme:1".to_owned()),
        constraint: Some("ib&fast".to_owned()),
        options: [
            ("mail-user", Choice::Value("me@site.org".to_owned())),
            ("exclusive", Choice::Given),
            ("no-kill", Choice::Left),
            ("ntasks-per-node", Choice::Value("4".to_owned())),
        ]
        .map(|(name, choice)| (name.to_owned(), choice))
        .into(),
    };
    let job = job(request);
    let expected = format!(
        "--account=phys --constraint=ib&fast --cpus-per-task=4 --exclusive --gres=gpu:a100:2,nvme:1 --job-name=cellferry-{} \
         --mail-user=me@site.org --mem=16384M --no-requeue --nodes=2 --ntasks-per-node=4 --output=/home/alice/job/job.log \
         --parsable --partition=gpu --qos=long --time=1-12:00:00",
        job.key.as_str()
    );
    assert_eq!(arguments(&job).join(" "), expected);
}

#[test]
fn a_job_that_may_be_requeued_is() {
    let request = Request {
        options: [("requeue".to_owned(), Choice::Given)].into(),
        ..Request::default()
    };
    let words = arguments(&job(request));
    assert!(words.contains(&"--requeue".to_owned()) && !words.contains(&"--no-requeue".to_owned()));
}

/// What sbatch says, and what is made of it.
async fn refused(stderr: &str, partitions: Option<&str>) -> BatchError {
    let mut answers = vec![(1, "", stderr), (0, "", "")];
    // Which of the first two is asked first is no matter: both say the same.
    answers[1] = (1, "", stderr);
    answers.extend(partitions.map(|list| (0, list, "")));
    let slurm = Slurm::new(Fake::answering(&answers));
    let request = Request {
        partition: Some("gpuu".to_owned()),
        ..Request::default()
    };
    slurm.submit(&job(request)).await.unwrap_err()
}

#[tokio::test]
async fn a_refusal_says_what_to_change() {
    let said = "sbatch: error: invalid partition specified: gpuu\n\
        sbatch: error: Batch job submission failed: Invalid partition name specified\n";
    assert_eq!(
        refused(said, Some("batch\ngpu\ngpu\n")).await.to_string(),
        "Slurm refuses the job: invalid partition specified: gpuu; Invalid partition name specified; there is no partition \
         `gpuu`; did you mean `gpu`"
    );
    for (said, expected) in [
        (
            "sbatch: error: Batch job submission failed: Invalid qos specification\n",
            "change `qos`",
        ),
        (
            "sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: Requested node configuration is not available\n",
            "lower `memory`",
        ),
        (
            "sbatch: unrecognized option '--frob=2'\nTry \"sbatch --help\" for more information\n",
            "unrecognized option '--frob=2'; take it out of the `options`",
        ),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n",
            "ask for less",
        ),
    ] {
        let error = refused(said, None).await;
        assert!(!error.is_passing());
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_controller_that_is_away_or_full_refuses_nothing() {
    let away = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n";
    let error = refused(away, None).await;
    assert!(
        error.is_passing() && matches!(error, BatchError::Away { .. }),
        "{error}"
    );
    let mine = "sbatch: error: QOSMaxSubmitJobPerUserLimit\n\
        sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n";
    let error = refused(mine, None).await;
    assert!(
        error.is_passing()
            && error
                .to_string()
                .contains("run as may (QOSMaxSubmitJobPerUserLimit); end one"),
        "{error}"
    );
    let full = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n";
    let error = refused(full, None).await;
    assert!(
        error.is_passing() && matches!(error, BatchError::Full { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn all_jobs_are_one_question() {
    let fake = Fake::answering(&[(0, QUEUE, ""), (0, QUEUE, "")]);
    let slurm = Slurm::new(fake.clone());
    let jobs = ["1", "2", "9", "99"].map(id);
    let found = slurm.status(&jobs, true).await.unwrap();
    assert!(matches!(found[&id("1")], Status::Running(_)));
    assert_eq!(found[&id("99")], Status::Unknown);
    assert!(matches!(&found[&id("2")], Status::Waiting(waiting) if waiting.place.is_none()));
    assert!(fake.asked()[0].contains("--jobs=1,2,9,99"));
    // Now it is known where job 2 waits.
    let found = slurm.status(&[id("2")], true).await.unwrap();
    assert!(matches!(&found[&id("2")], Status::Waiting(waiting) if waiting.place == Some(1)));
    assert!(fake.asked()[1].contains("--states=PENDING --partition=batch"));
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test]
async fn a_single_job_that_is_forgotten_is_no_error() {
    let said = "slurm_load_jobs error: Invalid job id specified\n";
    let slurm = Slurm::new(Fake::answering(&[
        (1, "", said),
        (1, "", "squeue: error: something else\n"),
    ]));
    assert_eq!(
        slurm.status(&[id("9")], false).await.unwrap()[&id("9")],
        Status::Unknown
    );
    let error = slurm.status(&[id("9")], false).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "`squeue` on login: squeue: error: something else"
    );
}

#[tokio::test]
async fn nothing_of_what_a_user_says_is_read_by_a_shell() {
    let fake = Fake::answering(&[(0, "17\n", ""), (0, "17\n", "")]);
    let request = Request {
        partition: Some("a'; touch /tmp/x; '".to_owned()),
        ..Request::default()
    };
    Slurm::new(fake.clone())
        .submit(&job(request))
        .await
        .unwrap();
    let asked = fake.asked();
    let script = asked
        .iter()
        .find(|script| script.contains("sbatch --"))
        .unwrap();
    assert!(
        script.contains(r"'--partition=a'\''; touch /tmp/x; '\'''"),
        "{script}"
    );
}

proptest::proptest! {
    /// Whatever a site's plugins print: nothing of it ends the program.
    #[test]
    fn no_answer_is_too_odd(text in "(?s).{0,200}") {
        let rows = answers::rows(&text);
        for row in &rows {
            row.status(Some(&rows));
        }
        answers::submitted(&text);
        answers::facts(&text);
        answers::Last::read(&text).ending();
        reasons::waiting(&text);
        reasons::said(&text);
    }
}
