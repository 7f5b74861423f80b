//! What a procedure does next: a pure function of the assignment and of what the nodes tell.

use shoal_meta::Assignment;
use shoal_types::NodeId;

use super::{Procedure, State, Task};

/// What is known of a node that a procedure needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSight {
    /// It counts as down.
    pub down: bool,
    /// Its replica of the shard; `None`: nothing was told of one.
    pub replica: Option<ReplicaSight>,
}

/// A replica, as far as a procedure cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSight {
    /// It leads in this term.
    pub leads: Option<u64>,
    /// It can take over.
    pub ready: bool,
}

/// What a procedure sees.
pub struct Sight<'a> {
    /// The shard's assignment; `None`: it has none any more.
    pub assignment: Option<&'a Assignment>,
    /// A node.
    pub node: &'a dyn Fn(NodeId) -> NodeSight,
}

/// What is done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The assignment becomes this one, by compare-and-swap; its version, time and, where the
    /// leader changes, its term are set by the caller.
    Assign {
        /// Who leads.
        leader: Option<NodeId>,
        /// Who follows.
        followers: Vec<NodeId>,
    },
    /// A node is told its role, to save the way through its watch; then its beats are waited for.
    Tell(NodeId),
    /// It has ended so.
    End(State, Option<String>),
}

fn end(state: State) -> Act {
    Act::End(state, None)
}

fn failed(why: String) -> Act {
    Act::End(State::Failed, Some(why))
}

fn without(followers: &[NodeId], node: NodeId) -> Vec<NodeId> {
    followers.iter().copied().filter(|f| *f != node).collect()
}

/// What a procedure that is running does next.
#[must_use]
pub fn next(procedure: &Procedure, sight: &Sight<'_>) -> Act {
    let Some(assignment) = sight.assignment else {
        return failed("the shard is assigned to nobody".into());
    };
    let with = With {
        procedure,
        assignment,
        sight,
    };
    match procedure.task {
        Task::FailOver { to, term, .. } => with.lead(to, term, true),
        Task::Promote { to, term, .. } => with.lead(to, term, false),
        Task::Reconcile { to, version, .. } => with.reconcile(to, version),
        Task::AddFollower { to, had, .. } => with.follow(to, had),
        Task::RemoveFollower { node, .. } => with.leave(node),
        Task::Move { from, to, had, .. } => with.relocate(from, to, had),
    }
}

struct With<'a> {
    procedure: &'a Procedure,
    assignment: &'a Assignment,
    sight: &'a Sight<'a>,
}

impl With<'_> {
    fn node(&self, node: NodeId) -> NodeSight {
        (self.sight.node)(node)
    }

    /// Whether a node leads in the term that it was given, or a later one.
    fn leads(&self, node: NodeId) -> bool {
        let replica = self.node(node).replica;
        replica.is_some_and(|r| r.leads.is_some_and(|term| term >= self.assignment.term))
    }

    fn is_ready(&self, node: NodeId) -> bool {
        self.node(node).replica.is_some_and(|r| r.ready)
    }

    /// Whether the shard needs another leader before anything else.
    fn is_orphaned(&self) -> bool {
        self.assignment.leader.is_none_or(|l| self.node(l).down)
    }

    fn lead(&self, to: NodeId, term: u64, may_open: bool) -> Act {
        let Assignment {
            leader, followers, ..
        } = self.assignment;
        if *leader == Some(to) && self.assignment.term > term {
            return self.until_it_leads(to);
        }
        if self.assignment.term != term {
            return end(State::Overtaken);
        }
        if self.procedure.cancelled {
            return end(State::Cancelled);
        }
        if *leader == Some(to) {
            return end(State::Done);
        }
        if self.node(to).down {
            return failed(format!("node {to} went down"));
        }
        if !may_open && !followers.contains(&to) {
            return failed(format!("node {to} follows the shard no more"));
        }
        self.give_lead(to)
    }

    /// The lead was given to a node: it is waited for.
    fn until_it_leads(&self, to: NodeId) -> Act {
        if self.leads(to) {
            end(State::Done)
        } else if self.node(to).down {
            failed(format!("node {to} went down before it led"))
        } else {
            Act::Tell(to)
        }
    }

    /// A node leads, and who led follows.
    fn give_lead(&self, to: NodeId) -> Act {
        let mut followers = without(&self.assignment.followers, to);
        followers.extend(self.assignment.leader.filter(|old| *old != to));
        Act::Assign {
            leader: Some(to),
            followers,
        }
    }

    /// A node that has no replica follows.
    fn join(&self, to: NodeId) -> Act {
        if self.node(to).down {
            return failed(format!("node {to} is down"));
        }
        let mut followers = self.assignment.followers.clone();
        followers.push(to);
        Act::Assign {
            leader: self.assignment.leader,
            followers,
        }
    }

    /// A node that follows is waited for until it can take over.
    fn until_it_is_ready(&self, to: NodeId) -> Act {
        if self.node(to).down {
            failed(format!("node {to} went down before it had caught up"))
        } else {
            Act::Tell(to)
        }
    }

    fn reconcile(&self, to: NodeId, version: u64) -> Act {
        if self.assignment.version > version {
            return if self.assignment.leader == Some(to) {
                self.until_it_leads(to)
            } else {
                end(State::Overtaken)
            };
        }
        if self.assignment.version == version {
            // What was heard of first came late: nothing is amiss.
            return end(State::Overtaken);
        }
        if self.node(to).down {
            return failed(format!("node {to} went down"));
        }
        self.give_lead(to)
    }

    fn follow(&self, to: NodeId, had: bool) -> Act {
        let Assignment {
            leader, followers, ..
        } = self.assignment;
        if self.procedure.cancelled {
            return if followers.contains(&to) && !had {
                self.take_off(to)
            } else {
                end(State::Cancelled)
            };
        }
        if self.is_orphaned() {
            return end(State::Overtaken);
        }
        if !self.assignment.involves(to) {
            return self.join(to);
        }
        if self.is_ready(to) || *leader == Some(to) {
            end(State::Done)
        } else {
            self.until_it_is_ready(to)
        }
    }

    fn take_off(&self, node: NodeId) -> Act {
        Act::Assign {
            leader: self.assignment.leader,
            followers: without(&self.assignment.followers, node),
        }
    }

    fn leave(&self, node: NodeId) -> Act {
        if self.assignment.leader == Some(node) {
            return failed(format!("node {node} leads the shard"));
        }
        if self.is_orphaned() {
            return end(State::Overtaken);
        }
        if self.assignment.followers.contains(&node) {
            return if self.procedure.cancelled {
                end(State::Cancelled)
            } else {
                self.take_off(node)
            };
        }
        let seen = self.node(node);
        // One that is away has nothing to let go of.
        if seen.down || seen.replica.is_none() {
            end(State::Done)
        } else {
            Act::Tell(node)
        }
    }

    fn relocate(&self, from: NodeId, to: NodeId, had: bool) -> Act {
        let Assignment {
            leader, followers, ..
        } = self.assignment;
        if self.procedure.cancelled && *leader != Some(to) && self.assignment.involves(from) {
            return if !had && followers.contains(&to) {
                self.take_off(to)
            } else {
                end(State::Cancelled)
            };
        }
        if !self.assignment.involves(from) {
            return if self.assignment.involves(to) {
                // What is left is to wait until it has let go.
                self.leave(from)
            } else {
                end(State::Overtaken)
            };
        }
        let ready = self.is_ready(to);
        if self.is_orphaned() && (*leader != Some(from) || !ready) {
            return end(State::Overtaken);
        }
        if !self.assignment.involves(to) {
            return self.join(to);
        }
        if *leader == Some(to) {
            if !self.leads(to) {
                return self.until_it_leads(to);
            }
            // It reads the claim of its successor before it lets go: what it had in flight is
            // answered for certain.
            let old = self.node(from);
            let lets_go = old.down || old.replica.is_none_or(|r| r.leads.is_none());
            return if lets_go {
                self.take_off(from)
            } else {
                Act::Tell(from)
            };
        }
        if !ready {
            return self.until_it_is_ready(to);
        }
        if *leader == Some(from) {
            return self.give_lead(to);
        }
        self.take_off(from)
    }
}
