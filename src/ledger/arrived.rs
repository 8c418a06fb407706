//! What a prelude brought to a worker.

use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::namespace::{Content, Entry};
use super::{Defined, Delta, Description, Ledger, Namespace, Plan, Step};

impl Ledger {
    /// What the prelude brought.
    pub(super) fn arrived(
        &mut self,
        view: &Namespace,
        worker: WorkerId,
        plan: &Plan,
        delta: &mut Delta,
    ) {
        let held = self.held.entry(worker).or_default();
        for name in &plan.drops {
            held.names.remove(name);
        }
        for step in &plan.steps {
            match step {
                Step::Define(defined) => {
                    for name in &defined.definition.binds {
                        if let Some(version) = view.version(name) {
                            held.names.insert(name.clone(), version);
                        }
                    }
                    let setting = |setting: &Arc<Defined>| Arc::ptr_eq(setting, defined);
                    held.settings.extend(view.settings.iter().position(setting));
                }
                Step::Put(put) => {
                    for (name, description) in &put.names {
                        let Some(entry) = view.get(name.as_str()) else {
                            continue;
                        };
                        let version = put.versions.get(name).copied().unwrap_or(entry.version);
                        let needs = &description.needs | &put.needs;
                        if let Content::Value(known) = &entry.content
                            && known.needs != needs
                        {
                            let content = Content::Value(Description {
                                needs,
                                ..known.clone()
                            });
                            let entry = Entry {
                                content,
                                ..Entry::clone(entry)
                            };
                            delta.describe(name, entry);
                        }
                        held.names.insert(name.clone(), version);
                    }
                }
            }
        }
    }

    /// What a prelude brought to a worker, although no cell ran there.
    pub fn brought(&mut self, view: &Namespace, worker: WorkerId, plan: &Plan) {
        let mut described = Delta::default();
        self.arrived(view, worker, plan, &mut described);
        // Of a last result that is among it the display hook has the object of before.
        self.held.entry(worker).or_default().shown.clear();
        let committed = Arc::make_mut(&mut self.committed);
        for (name, entry) in described.entries {
            if let Some(entry) = entry
                && committed.version(&name) == Some(entry.version)
            {
                committed.entries.insert(name, entry);
            }
        }
    }
}
