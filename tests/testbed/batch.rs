//! Drives a batch system as the kernel would, for tests: orders as JSON come in line by line, and so do the answers go out.
//!
//! `batch FOLDER TARGET [pbs]`: the folder holds a `cellferry.toml` with that target of type `slurm`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cellferry::target::batch::commands::Commands;
use cellferry::target::batch::pbs::Pbs;
use cellferry::target::batch::shell::{Here, Shell, There};
use cellferry::target::batch::slurm::Slurm;
use cellferry::target::batch::watch::Watch;
use cellferry::target::batch::{Batch, BatchError, Job, JobId, JobKey, script};
use cellferry::target::config::{Place, Targets};
use cellferry_ssh::{Ask, Options, Question, Zeroizing, connect};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Nobody answers.
struct Nobody;

#[async_trait]
impl Ask for Nobody {
    async fn ask(&self, _: Question) -> Option<Zeroizing<String>> {
        None
    }

    fn tell(&self, _: &str) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, name, rest @ ..] = &arguments[..] else {
        return Err("usage: batch FOLDER TARGET [pbs]".into());
    };
    let targets = Targets::load(Path::new(folder), None)?;
    let target = targets.get(name)?;
    let Place::Slurm(slurm) = &target.place else {
        return Err("not a target of type slurm".into());
    };
    let shell: Arc<dyn Shell> = match targets.login(name, slurm, None)? {
        None => Arc::new(Here),
        Some(ssh) => {
            let client = connect(&Options::new(ssh.host), Arc::new(Nobody)).await?;
            Arc::new(There {
                client: Arc::new(client),
            })
        }
    };
    let pbs = rest.first().is_some_and(|word| word == "pbs");
    let batch: Arc<dyn Batch> = match pbs {
        true => Arc::new(Pbs::new(shell.clone())),
        false => Arc::new(Slurm::new(shell.clone())),
    };
    let driver = Driver {
        watch: Watch::start(batch.clone()),
        commands: Commands::new(batch.system(), shell),
        batch,
        pbs,
        request: slurm.request.clone(),
        base: slurm.folder.clone(),
        setup: target.setup.clone(),
        table: target.table(),
    };
    let driver = Arc::new(driver);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order: Value = serde_json::from_str(&line)?;
        if order["do"] == "follow" {
            // Goes on beside the orders that follow.
            let driver = driver.clone();
            tokio::spawn(async move { driver.follow(&order).await });
            continue;
        }
        let answer = match driver.obey(&order).await {
            Ok(answer) => answer,
            Err(error) => json!({"error": error.to_string(), "passing": error.is_passing()}),
        };
        println!("{answer}");
    }
    Ok(())
}

struct Driver {
    batch: Arc<dyn Batch>,
    watch: Watch,
    commands: Commands,
    pbs: bool,
    request: cellferry::target::batch::Request,
    base: Option<String>,
    setup: Option<String>,
    table: String,
}

fn text<'a>(order: &'a Value, key: &str) -> &'a str {
    order[key].as_str().unwrap_or_default()
}

fn id(order: &Value) -> JobId {
    JobId::new(text(order, "job")).expect("no number of a job")
}

fn key(order: &Value) -> JobKey {
    JobKey::parse(text(order, "key")).expect("no key of a job")
}

impl Driver {
    async fn obey(&self, order: &Value) -> Result<Value, BatchError> {
        Ok(match text(order, "do") {
            "submit" => {
                let key = JobKey::new();
                let secret = text(order, "secret");
                let folder =
                    script::prepare(&self.commands, self.base.as_deref(), &key, secret).await?;
                let words = order["agent"].as_array().cloned().unwrap_or_default();
                let agent: Vec<String> = words
                    .iter()
                    .filter_map(|word| word.as_str())
                    .map(|word| word.replace("{secret}", &script::secret(&folder)))
                    .collect();
                let write = if self.pbs { script::pbs } else { script::slurm };
                let script = write(&folder, &agent, self.setup.as_deref());
                let job = Job {
                    key,
                    request: self.request.clone(),
                    script,
                    folder,
                };
                let submitted = self.batch.submit(&job).await;
                let (key, folder) = (job.key.as_str(), &job.folder);
                match submitted {
                    Ok(id) => json!({"job": id.as_str(), "key": key, "folder": folder}),
                    Err(error) => {
                        json!({"error": error.to_string(), "passing": error.is_passing(), "key": key, "folder": folder})
                    }
                }
            }
            "status" => {
                let places = order["places"] == true;
                let found = self.batch.status(&[id(order)], places).await?;
                let line = |(job, status): (&JobId, &cellferry::target::batch::Status)| {
                    status.line(self.batch.system(), job)
                };
                json!({"line": found.iter().map(line).next()})
            }
            "find" => {
                let found = self.batch.find(&key(order)).await?;
                json!({"job": found.as_ref().map(JobId::as_str)})
            }
            "ending" => {
                let ending = self.batch.ending(&id(order), text(order, "folder")).await?;
                let told = ending.told(self.batch.system(), &id(order), &self.table);
                json!({"code": ending.code, "told": told})
            }
            "cancel" => {
                self.batch.cancel(&id(order)).await?;
                json!({})
            }
            "remove" => {
                script::remove(&self.commands, text(order, "folder")).await?;
                json!({})
            }
            other => panic!("unknown order {other}"),
        })
    }

    /// Prints each news of a job, until it is over.
    async fn follow(&self, order: &Value) {
        let job = id(order);
        let mut news = self.watch.follow(job.clone());
        while news.changed().await.is_ok() {
            let heard = news.borrow_and_update().clone();
            let line = heard
                .status
                .map(|status| status.line(self.batch.system(), &job));
            println!("{}", json!({"line": line, "trouble": heard.trouble}));
        }
        println!("{}", json!({"over": job.as_str()}));
    }
}
