use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

use super::*;

/// The way to a location that is reached as far as the place where it is waited for, from the second attempt on.
struct HalfWay {
    location: TargetName,
    tries: AtomicU32,
    half: watch::Sender<bool>,
    /// Whether it ever is.
    opens: bool,
}

#[async_trait]
impl Way for HalfWay {
    fn location(&self) -> &TargetName {
        &self.location
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn deadline(&self, since: Instant, known: bool) -> Option<Instant> {
        (known || !*self.half.borrow()).then(|| since + self.patience())
    }

    async fn deadline_moved(&self) {
        let _ = self.half.subscribe().changed().await;
    }

    async fn open(&self, _: &str, _: bool) -> Result<Opened, Broken> {
        if self.tries.fetch_add(1, Ordering::Relaxed) == 0 || !self.opens {
            return Err(Broken::Again("cut".to_owned()));
        }
        sleep(Duration::from_secs(10)).await;
        self.half.send_replace(true);
        std::future::pending().await
    }

    fn is_patient(&self) -> bool {
        true
    }

    fn problem(&self, reason: &str) -> Problem {
        Problem::new("Problem", reason.to_owned())
    }

    fn lost(&self) -> Problem {
        Problem::new("Lost", "away".to_owned())
    }

    fn gone(&self) -> Problem {
        Problem::new("Gone", "gone".to_owned())
    }
}

/// What is told within ten minutes, and whether the location is lost then.
async fn told(opens: bool) -> (Vec<LinkState>, bool) {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let keeper = Keeper {
        way: HalfWay {
            location: "big, node 1".into(),
            tries: AtomicU32::new(0),
            half: watch::Sender::new(false),
            opens,
        },
        conversation: String::new(),
        events,
    };
    let (_connection, line) = Connection::<ToAgent, FromAgent>::resumable([1; 16]);
    let lost = timeout(Duration::from_secs(600), keeper.keep(&line)).await;
    let mut states = Vec::new();
    while let Ok(FromLocation::Link(_, state)) = inbox.try_recv() {
        states.push(state);
    }
    (states, lost.is_ok())
}

#[tokio::test(start_paused = true)]
async fn what_has_not_come_yet_is_waited_for_again_once_the_way_there_is_open() {
    let (states, lost) = told(true).await;
    assert!(!lost);
    assert!(
        matches!(&states[..], [LinkState::Lost { .. }, LinkState::Back]),
        "{states:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_the_way_stays_closed_the_location_is_lost_in_the_end() {
    let (states, lost) = told(false).await;
    assert!(lost);
    assert!(
        states
            .iter()
            .all(|state| matches!(state, LinkState::Lost { .. }))
    );
}
