//! Brings the file of a value from the machine where it was written to the one where it will be read.
//!
//! All local targets share one machine, home. Between two far hosts a value goes directly if one can open a TCP
//! connection to the other; else through home. A file goes once to each machine, however many workers there read it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use cellferry_wire::protocol::{FromAgent, Secret, ToAgent, WorkerId};

use super::agents::Agents;
use super::arrivals::Arrivals;
use crate::session::{HOME, TargetName};

/// A place with files of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// This one.
    Home,
    /// The host of a target.
    Far(TargetName),
}

/// Who waits for what, and the outcome.
pub type Carried = (u64, WorkerId, Result<(), String>);

/// All files of values, and those on their way.
#[derive(Debug, Default)]
pub struct Carry {
    files: HashMap<u64, FileOf>,
    /// What opens the door of each agent that has been asked for one.
    doors: HashMap<TargetName, Secret>,
    /// Pairs of hosts, sorted, of which neither can reach the other.
    apart: HashSet<(TargetName, TargetName)>,
    arrivals: Arc<Arrivals>,
}

#[derive(Debug, Default)]
struct FileOf {
    size: u64,
    /// Where it is whole.
    at: HashSet<Machine>,
    /// Where it goes, and who waits for it there.
    going: HashMap<Machine, Going>,
}

#[derive(Debug)]
struct Going {
    from: Machine,
    way: Way,
    /// The door has been asked for, and nothing goes before it is open.
    at_door: bool,
    waiting: Vec<WorkerId>,
}

/// How a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From home, or to home.
    Link,
    /// The reader fetches it from the holder's door.
    Pull,
    /// The holder brings it to the reader's door.
    Push,
    /// To home first.
    ThroughHome,
}

impl Carry {
    /// What arrives from far hosts is written through this.
    pub fn arrivals(&self) -> Arc<Arrivals> {
        self.arrivals.clone()
    }

    /// A value may be written on a machine.
    pub fn begun(&mut self, transfer: u64, machine: Machine) {
        self.files.entry(transfer).or_default().at.insert(machine);
    }

    /// A value has been written on a machine, all of it.
    pub fn written(&mut self, transfer: u64, machine: Machine, size: u64) {
        let file = self.files.entry(transfer).or_default();
        file.size = size;
        file.at.insert(machine);
    }

    /// A value has not become a file.
    pub fn not_written(&mut self, transfer: u64) {
        self.files.remove(&transfer);
    }

    /// Brings a file to the machine of `to`; the outcome now, if there is nothing to bring.
    pub fn bring(&mut self, transfer: u64, to: WorkerId, agents: &mut Agents) -> Option<Carried> {
        let Some(machine) = agents.machine(to) else {
            return Some((transfer, to, Err("its reader is gone".to_owned())));
        };
        // What is not a file travels inside messages.
        let Some(file) = self.files.get_mut(&transfer) else {
            return Some((transfer, to, Ok(())));
        };
        if file.at.contains(&machine) {
            return Some((transfer, to, Ok(())));
        }
        if let Some(going) = file.going.get_mut(&machine) {
            going.waiting.push(to);
            return None;
        }
        // From home, if it is there already: else from its maker.
        let from = [Machine::Home]
            .into_iter()
            .find(|home| file.at.contains(home));
        let Some(from) = from.or_else(|| file.at.iter().next().cloned()) else {
            return Some((transfer, to, Err("nobody has it any more".to_owned())));
        };
        let way = self.way(&from, &machine);
        let going = Going {
            from,
            way,
            at_door: false,
            waiting: vec![to],
        };
        if let Some(file) = self.files.get_mut(&transfer) {
            file.going.insert(machine.clone(), going);
        }
        let failed = self.start(transfer, &machine, agents).err()?;
        self.failed(transfer, &machine, &failed).pop()
    }

    fn way(&self, from: &Machine, to: &Machine) -> Way {
        match (from, to) {
            (Machine::Far(from), Machine::Far(to)) if self.apart.contains(&pair(from, to)) => {
                Way::ThroughHome
            }
            (Machine::Far(_), Machine::Far(_)) => Way::Pull,
            _ => Way::Link,
        }
    }

    /// Does the next thing for a file that goes to `machine`.
    fn start(
        &mut self,
        transfer: u64,
        machine: &Machine,
        agents: &mut Agents,
    ) -> Result<(), String> {
        let Some(file) = self.files.get_mut(&transfer) else {
            return Ok(());
        };
        let Some(going) = file.going.get_mut(machine) else {
            return Ok(());
        };
        let size = file.size;
        match (going.way, going.from.clone(), machine) {
            (Way::Link, Machine::Home, Machine::Far(to)) => agents.upload(to, transfer, size),
            (Way::Link, Machine::Far(from), Machine::Home) => {
                let path = agents
                    .segment_dir(&Machine::Home)?
                    .join(transfer.to_string());
                self.arrivals.expect(transfer, path)?;
                agents.tell(&from, ToAgent::Fetch { transfer })
            }
            (way @ (Way::Pull | Way::Push), Machine::Far(holder), Machine::Far(reader)) => {
                going.at_door = true;
                let door = if way == Way::Pull { &holder } else { reader };
                let secret = self.doors.entry(door.clone()).or_insert_with(new_secret);
                agents.tell(
                    door,
                    ToAgent::OpenDoor {
                        secret: secret.clone(),
                    },
                )
            }
            (Way::ThroughHome, from, _) => {
                if file.at.contains(&Machine::Home) {
                    going.way = Way::Link;
                    going.from = Machine::Home;
                    return self.start(transfer, machine, agents);
                }
                if file.going.contains_key(&Machine::Home) {
                    return Ok(());
                }
                let home = Going {
                    from,
                    way: Way::Link,
                    at_door: false,
                    waiting: Vec::new(),
                };
                file.going.insert(Machine::Home, home);
                self.start(transfer, &Machine::Home, agents)
            }
            _ => Err("there is no way between the two machines".to_owned()),
        }
    }

    /// What an agent says of files; who need not wait any more.
    pub fn heard(
        &mut self,
        target: &TargetName,
        message: FromAgent,
        agents: &mut Agents,
    ) -> Vec<Carried> {
        let machine = match &**target {
            HOME => Machine::Home,
            _ => Machine::Far(target.clone()),
        };
        match message {
            FromAgent::Stored { transfer } => self.arrived(transfer, &machine, agents),
            FromAgent::Sent { transfer, .. } => self.arrived(transfer, &Machine::Home, agents),
            FromAgent::Door { addresses } => self.through_door(target, &addresses, agents),
            FromAgent::DoorFailed { reason } => {
                tracing::info!("`{target}` takes no connections: {reason}");
                let waiting = self.waiting_at(target);
                waiting
                    .into_iter()
                    .flat_map(|(transfer, to)| self.next_way(transfer, &to, agents))
                    .collect()
            }
            FromAgent::DirectFailed {
                transfer,
                reason,
                reached,
            } => {
                let Some(to) = self.direct(transfer, &machine) else {
                    return Vec::new();
                };
                tracing::info!("a value does not go directly to `{target}` or from it: {reason}");
                if reached {
                    // The other agent may be gone, or out of its reach by now: on the way through home that is told, or mended.
                    self.go(transfer, &to, Way::ThroughHome, agents)
                } else {
                    self.next_way(transfer, &to, agents)
                }
            }
            FromAgent::TransferFailed { transfer, reason } => {
                let Some(file) = self.files.get(&transfer) else {
                    return Vec::new();
                };
                let concerned: Vec<Machine> = file
                    .going
                    .iter()
                    .filter(|(to, going)| **to == machine || going.from == machine)
                    .map(|(to, _)| to.clone())
                    .collect();
                let reason = format!("`{target}`: {reason}");
                concerned
                    .iter()
                    .flat_map(|to| self.failed(transfer, to, &reason))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// The one way did not work: takes the next.
    fn next_way(&mut self, transfer: u64, to: &Machine, agents: &mut Agents) -> Vec<Carried> {
        let file = self.files.get(&transfer);
        let Some(going) = file.and_then(|file| file.going.get(to)) else {
            return Vec::new();
        };
        let way = match going.way {
            Way::Pull => Way::Push,
            _ => Way::ThroughHome,
        };
        if let (Way::ThroughHome, Machine::Far(from), Machine::Far(to)) = (way, &going.from, to) {
            self.apart.insert(pair(from, to));
        }
        self.go(transfer, to, way, agents)
    }

    /// Begins anew, on this way.
    fn go(&mut self, transfer: u64, to: &Machine, way: Way, agents: &mut Agents) -> Vec<Carried> {
        let file = self.files.get_mut(&transfer);
        let Some(going) = file.and_then(|file| file.going.get_mut(to)) else {
            return Vec::new();
        };
        going.way = way;
        match self.start(transfer, to, agents) {
            Ok(()) => Vec::new(),
            Err(reason) => self.failed(transfer, to, &reason),
        }
    }

    fn arrived(&mut self, transfer: u64, machine: &Machine, agents: &mut Agents) -> Vec<Carried> {
        let Some(file) = self.files.get_mut(&transfer) else {
            return Vec::new();
        };
        file.at.insert(machine.clone());
        let waiting = file
            .going
            .remove(machine)
            .map(|going| going.waiting)
            .unwrap_or_default();
        let mut carried: Vec<Carried> = waiting
            .into_iter()
            .map(|worker| (transfer, worker, Ok(())))
            .collect();
        if *machine == Machine::Home {
            let through: Vec<Machine> = file
                .going
                .iter()
                .filter(|(_, going)| going.way == Way::ThroughHome)
                .map(|(to, _)| to.clone())
                .collect();
            for to in through {
                if let Err(reason) = self.start(transfer, &to, agents) {
                    carried.extend(self.failed(transfer, &to, &reason));
                }
            }
        }
        carried
    }

    fn failed(&mut self, transfer: u64, to: &Machine, reason: &str) -> Vec<Carried> {
        let Some(file) = self.files.get_mut(&transfer) else {
            return Vec::new();
        };
        if *to == Machine::Home {
            self.arrivals.forget(transfer);
        }
        let mut waiting = file
            .going
            .remove(to)
            .map(|going| going.waiting)
            .unwrap_or_default();
        if *to == Machine::Home {
            file.going.retain(|_, going| {
                let stays = going.way != Way::ThroughHome;
                if !stays {
                    waiting.append(&mut going.waiting);
                }
                stays
            });
        }
        waiting
            .into_iter()
            .map(|worker| (transfer, worker, Err(reason.to_owned())))
            .collect()
    }

    /// Transfers that wait for the door of an agent.
    fn waiting_at(&self, target: &TargetName) -> Vec<(u64, Machine)> {
        let door = Machine::Far(target.clone());
        let mut waiting = Vec::new();
        for (transfer, file) in &self.files {
            let at_door = file.going.iter().filter(|(to, going)| {
                going.at_door
                    && match going.way {
                        Way::Pull => going.from == door,
                        Way::Push => **to == door,
                        _ => false,
                    }
            });
            waiting.extend(at_door.map(|(to, _)| (*transfer, to.clone())));
        }
        waiting
    }

    /// A door is open: what waited for it goes.
    fn through_door(
        &mut self,
        target: &TargetName,
        addresses: &[SocketAddr],
        agents: &mut Agents,
    ) -> Vec<Carried> {
        let mut carried = Vec::new();
        for (transfer, to) in self.waiting_at(target) {
            let Some(secret) = self.doors.get(target).cloned() else {
                continue;
            };
            let Some(file) = self.files.get_mut(&transfer) else {
                continue;
            };
            let size = file.size;
            let Some(going) = file.going.get_mut(&to) else {
                continue;
            };
            going.at_door = false;
            let addresses = addresses.to_vec();
            let told = match (going.way, &going.from, &to) {
                (Way::Pull, _, Machine::Far(reader)) => agents.tell(
                    reader,
                    ToAgent::Pull {
                        transfer,
                        size,
                        from: addresses,
                        secret,
                    },
                ),
                (Way::Push, Machine::Far(holder), _) => agents.tell(
                    holder,
                    ToAgent::Push {
                        transfer,
                        to: addresses,
                        secret,
                    },
                ),
                _ => Ok(()),
            };
            if let Err(reason) = told {
                carried.extend(self.failed(transfer, &to, &reason));
            }
        }
        carried
    }

    /// Where a transfer goes directly, of which a machine at one of its ends says something.
    fn direct(&self, transfer: u64, machine: &Machine) -> Option<Machine> {
        let going = &self.files.get(&transfer)?.going;
        let concerned = going.iter().find(|(to, going)| match going.way {
            Way::Pull => *to == machine,
            Way::Push => going.from == *machine,
            _ => false,
        });
        concerned.map(|(to, _)| to.clone())
    }

    /// Files that are not needed any more, wherever they are.
    pub fn release(&mut self, transfers: &[u64], agents: &mut Agents) {
        let mut by_target: HashMap<TargetName, Vec<u64>> = HashMap::new();
        for transfer in transfers {
            self.arrivals.forget(*transfer);
            let Some(file) = self.files.remove(transfer) else {
                continue;
            };
            for machine in file.at.into_iter().chain(file.going.into_keys()) {
                match machine {
                    Machine::Far(target) => by_target.entry(target).or_default().push(*transfer),
                    Machine::Home => remove(*transfer, agents),
                }
            }
        }
        for (target, transfers) in by_target {
            let _ = agents.tell(&target, ToAgent::Forget { transfers });
        }
    }

    /// A host is in reach again, perhaps for other hosts, too.
    pub fn back(&mut self, target: &TargetName) {
        self.apart
            .retain(|(one, other)| one != target && other != target);
    }

    /// A host is lost, with its files and its door.
    pub fn lost(&mut self, target: &TargetName) -> Vec<Carried> {
        self.doors.remove(target);
        self.back(target);
        let machine = Machine::Far(target.clone());
        let mut concerned = Vec::new();
        for (transfer, file) in &mut self.files {
            file.at.remove(&machine);
            let ends = file
                .going
                .iter()
                .filter(|(to, going)| **to == machine || going.from == machine);
            concerned.extend(ends.map(|(to, _)| (*transfer, to.clone())));
        }
        let reason = format!("`{target}` is lost");
        concerned
            .into_iter()
            .flat_map(|(transfer, to)| self.failed(transfer, &to, &reason))
            .collect()
    }
}

fn remove(transfer: u64, agents: &Agents) {
    let Ok(directory) = agents.segment_dir(&Machine::Home) else {
        return;
    };
    let path = directory.join(transfer.to_string());
    // To free a gigabyte of memory takes a while, which the cell need not wait for.
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }));
}

/// 32 bytes that nobody can guess: two random UUIDs have 244 random bits.
fn new_secret() -> Secret {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    Secret::new(bytes)
}

fn pair(one: &TargetName, other: &TargetName) -> (TargetName, TargetName) {
    if one <= other {
        (one.clone(), other.clone())
    } else {
        (other.clone(), one.clone())
    }
}
