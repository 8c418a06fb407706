//! Asks a batch system what becomes of jobs: one question for all of them, and never two within five seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Batch, JobId, Status};

/// The least time between two questions.
const LEAST: Duration = Duration::from_secs(5);

/// The time between two questions while no job waits: the agents themselves tell of what happens to them.
const CALM: Duration = Duration::from_secs(30);

/// The most time between two questions to a batch system that does not answer.
const MOST: Duration = Duration::from_secs(60);

/// How often the queue is looked through for the places of the jobs that wait: a question that costs the batch system more.
const PLACES: Duration = Duration::from_secs(30);

/// What was last heard of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// `None` as long as nothing was heard.
    pub status: Option<Status>,
    /// Why nothing is heard any more.
    pub trouble: Option<String>,
}

/// Follows the jobs of a session.
#[derive(Debug)]
pub struct Watch {
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    Follow(JobId, watch::Sender<News>),
    Hurry,
}

impl Watch {
    /// Watches jobs of this batch system, until it is dropped.
    pub fn start(batch: Arc<dyn Batch>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(watch_jobs(batch, inbox));
        Self { orders }
    }

    /// What is heard of a job, until it is over (then the channel closes after the last of it), or until the receiver is
    /// dropped.
    pub fn follow(&self, job: JobId) -> watch::Receiver<News> {
        let (sender, receiver) = watch::channel(News::default());
        // Nobody watches any more only at the end of the program.
        let _ = self.orders.send(Order::Follow(job, sender));
        receiver
    }

    /// Something has happened: asks as soon as it may.
    pub fn hurry(&self) {
        let _ = self.orders.send(Order::Hurry);
    }
}

struct Followed {
    sender: watch::Sender<News>,
    /// It was not known at the last question. A batch system that has just been started may not know all jobs yet.
    missed: bool,
}

async fn watch_jobs(batch: Arc<dyn Batch>, mut inbox: mpsc::UnboundedReceiver<Order>) {
    let mut jobs: BTreeMap<JobId, Followed> = BTreeMap::new();
    let mut earliest = Instant::now();
    let mut due = earliest;
    let mut places_due = earliest;
    let mut pause = LEAST;
    loop {
        jobs.retain(|_, job| !job.sender.is_closed());
        let order = tokio::select! {
            biased;
            order = inbox.recv() => match order {
                Some(order) => Some(order),
                None => return,
            },
            () = tokio::time::sleep_until(due), if !jobs.is_empty() => None,
        };
        match order {
            Some(Order::Follow(job, sender)) => {
                let followed = Followed {
                    sender,
                    missed: false,
                };
                jobs.insert(job, followed);
                due = earliest;
                continue;
            }
            Some(Order::Hurry) => {
                due = earliest;
                continue;
            }
            None => {}
        }
        let now = Instant::now();
        let waits = |job: &Followed| matches!(job.sender.borrow().status, Some(Status::Waiting(_)));
        let places = now >= places_due && jobs.values().any(waits);
        if places {
            places_due = now + PLACES;
        }
        let asked: Vec<JobId> = jobs.keys().cloned().collect();
        match batch.status(&asked, places).await {
            Ok(found) => {
                note(&mut jobs, &found);
                let closes = |job: &Followed| job.sender.borrow().status == Some(Status::Closing);
                pause = if jobs
                    .values()
                    .any(|job| waits(job) || closes(job) || job.missed)
                {
                    LEAST
                } else {
                    CALM
                };
            }
            Err(error) => {
                tracing::debug!(%error, "a batch system does not say what becomes of jobs");
                let trouble = error.to_string();
                for job in jobs.values() {
                    job.sender.send_if_modified(|news| {
                        let new = news.trouble.as_ref() != Some(&trouble);
                        news.trouble = Some(trouble.clone());
                        new
                    });
                }
                pause = (pause * 2).min(MOST);
            }
        }
        // Counted from the answer: a batch system that takes long to answer has enough to do.
        let now = Instant::now();
        earliest = now + LEAST;
        due = now + pause;
    }
}

/// Passes on what was heard, and lets go of jobs that are over.
fn note(jobs: &mut BTreeMap<JobId, Followed>, found: &BTreeMap<JobId, Status>) {
    jobs.retain(|id, job| {
        let Some(status) = found.get(id) else {
            return true;
        };
        if *status == Status::Unknown && !job.missed {
            job.missed = true;
            return true;
        }
        job.missed = false;
        let mut status = status.clone();
        job.sender.send_if_modified(|news| {
            // A place that was not asked for this time is still the best guess.
            if let (Status::Waiting(new), Some(Status::Waiting(old))) = (&mut status, &news.status)
            {
                new.place = new.place.or(old.place);
            }
            let new = News {
                status: Some(status.clone()),
                trouble: None,
            };
            let differs = *news != new;
            *news = new;
            differs
        });
        !matches!(status, Status::Over | Status::Unknown)
    });
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::target::batch::{BatchError, Ending, Job, JobKey, Running, Waiting};

    /// A batch system that says what it is told to, and notes when it was asked.
    #[derive(Default)]
    struct Fake {
        script: Mutex<VecDeque<Option<Status>>>,
        asked: Mutex<Vec<(Instant, usize, bool)>>,
    }

    #[async_trait]
    impl Batch for Fake {
        fn system(&self) -> &'static str {
            "Fake"
        }

        async fn submit(&self, _: &Job) -> Result<JobId, BatchError> {
            unreachable!()
        }

        async fn find(&self, _: &JobKey) -> Result<Option<JobId>, BatchError> {
            unreachable!()
        }

        async fn status(
            &self,
            jobs: &[JobId],
            places: bool,
        ) -> Result<BTreeMap<JobId, Status>, BatchError> {
            let mut asked = self.asked.lock().unwrap();
            asked.push((Instant::now(), jobs.len(), places));
            let mut script = self.script.lock().unwrap();
            let next = if script.len() > 1 {
                script.pop_front()
            } else {
                script.front().cloned()
            };
            match next.unwrap() {
                Some(status) => Ok(jobs
                    .iter()
                    .map(|job| (job.clone(), status.clone()))
                    .collect()),
                None => Err(BatchError::Away {
                    place: "login".to_owned(),
                    system: "Fake",
                    said: "busy".to_owned(),
                }),
            }
        }

        async fn ending(&self, _: &JobId, _: &str) -> Result<Ending, BatchError> {
            unreachable!()
        }

        async fn cancel(&self, _: &JobId) -> Result<(), BatchError> {
            unreachable!()
        }
    }

    fn saying(script: &[Option<Status>]) -> Arc<Fake> {
        Arc::new(Fake {
            script: Mutex::new(script.iter().cloned().collect()),
            ..Fake::default()
        })
    }

    fn job(number: usize) -> JobId {
        JobId::new(&number.to_string()).unwrap()
    }

    fn waiting() -> Option<Status> {
        Some(Status::Waiting(Waiting::default()))
    }

    fn running() -> Option<Status> {
        Some(Status::Running(Running {
            nodes: "node1".to_owned(),
            until: None,
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_jobs_are_one_question_in_five_seconds() {
        let batch = saying(&[waiting()]);
        let watch = Watch::start(batch.clone());
        let mut followed = Vec::new();
        for number in 0..1000 {
            followed.push(watch.follow(job(number)));
            tokio::time::sleep(Duration::from_millis(100)).await;
            watch.hurry();
        }
        let asked = batch.asked.lock().unwrap();
        assert!((18..=21).contains(&asked.len()), "{} in 100 s", asked.len());
        for pair in asked.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= LEAST);
        }
        assert!(asked.last().unwrap().1 > 900);
        let places = asked.iter().filter(|asked| asked.2).count();
        assert!((3..=4).contains(&places), "{places}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_while_there_is_nothing_to_ask() {
        let batch = saying(&[running()]);
        let watch = Watch::start(batch.clone());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let followed = watch.follow(job(1));
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(batch.asked.lock().unwrap().len(), 3); // at 0, 30 and 60 s
        drop(followed);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(batch.asked.lock().unwrap().len() <= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_followed_to_its_end() {
        let batch = saying(&[waiting(), running(), Some(Status::Over)]);
        let watch = Watch::start(batch.clone());
        let mut news = watch.follow(job(1));
        let mut seen = Vec::new();
        while news.changed().await.is_ok() {
            seen.push(news.borrow_and_update().status.clone());
        }
        assert_eq!(seen, [waiting(), running(), Some(Status::Over)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unknown_once_may_only_have_been_forgotten_for_a_moment() {
        let unknown = Some(Status::Unknown);
        let batch = saying(&[
            running(),
            unknown.clone(),
            running(),
            unknown.clone(),
            unknown.clone(),
        ]);
        let watch = Watch::start(batch.clone());
        let mut news = watch.follow(job(1));
        let mut seen = Vec::new();
        while news.changed().await.is_ok() {
            seen.push(news.borrow_and_update().status.clone());
        }
        assert_eq!(seen, [running(), unknown]);
        assert_eq!(batch.asked.lock().unwrap().len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_and_asked_into_less_and_less() {
        let batch = saying(&[waiting(), None]);
        let watch = Watch::start(batch.clone());
        let mut news = watch.follow(job(1));
        news.changed().await.unwrap();
        news.changed().await.unwrap();
        let heard = news.borrow_and_update().clone();
        assert_eq!(heard.status, waiting());
        assert_eq!(
            heard.trouble.unwrap(),
            "Fake does not answer on login: busy"
        );
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!((10..=14).contains(&batch.asked.lock().unwrap().len()));
        *batch.script.lock().unwrap() = [running()].into();
        news.changed().await.unwrap();
        assert_eq!(news.borrow().trouble, None);
    }
}
