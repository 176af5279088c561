//! One answer about the host, and all of them in the order a reader wants them.

use serde::Serialize;

use crate::{HostRoot, cost, cpu, iommu, kvm, memory, vfio};

/// How an answer turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Present and as it should be.
    Ok,
    /// Absent or unusable.
    No,
    /// Usable, at a price.
    Warning,
    /// The host does not tell.
    Unknown,
}

/// What is known of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The topic's short name.
    pub topic: &'static str,
    /// The answer.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// Why the answer is not [`State::Ok`].
    pub cause: Option<String>,
    /// What the user can do about it.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub(crate) fn ok(topic: &'static str, detail: impl Into<String>) -> Finding {
        Finding {
            topic,
            state: State::Ok,
            detail: detail.into(),
            cause: None,
            remedy: None,
        }
    }

    /// A "no".
    pub(crate) fn no(topic: &'static str, detail: impl Into<String>) -> Finding {
        Finding {
            state: State::No,
            ..Finding::ok(topic, detail)
        }
    }

    /// A "yes, but".
    pub(crate) fn warning(topic: &'static str, detail: impl Into<String>) -> Finding {
        Finding {
            state: State::Warning,
            ..Finding::ok(topic, detail)
        }
    }

    /// The host does not tell.
    pub(crate) fn unknown(topic: &'static str, cause: impl Into<String>) -> Finding {
        Finding {
            state: State::Unknown,
            cause: Some(cause.into()),
            ..Finding::ok(topic, "cannot be known")
        }
    }

    /// Adds why, and what to do.
    pub(crate) fn because(
        mut self,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        self.cause = Some(cause.into());
        self.remedy = Some(remedy.into());
        self
    }
}

/// All that can be told of the host, in a fixed order.
pub fn findings(root: &HostRoot) -> Vec<Finding> {
    let mut all = cpu::findings(root);
    all.extend(kvm::findings(root));
    all.extend(cost::findings(root));
    all.extend(iommu::findings(root));
    all.extend(vfio::findings(root));
    all.extend(memory::findings(root));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::FakeRoot;

    #[test]
    fn an_empty_host_gives_findings_and_no_ok() {
        let all = findings(&FakeRoot::new(&[]).root());
        assert!(all.len() > 10);
        let ok: Vec<_> = all.iter().filter(|one| one.state == State::Ok).collect();
        assert!(ok.is_empty(), "{ok:?}");
    }

    #[test]
    fn every_no_and_warning_has_cause_and_remedy_on_this_host() {
        for one in findings(&HostRoot::default()) {
            if matches!(one.state, State::No | State::Warning) {
                assert!(one.cause.is_some() && one.remedy.is_some(), "{one:?}");
            }
        }
    }

    #[test]
    fn topics_are_named_once() {
        let mut topics: Vec<_> = findings(&HostRoot::default())
            .iter()
            .map(|one| one.topic)
            .collect();
        let count = topics.len();
        topics.sort_unstable();
        topics.dedup();
        assert_eq!(topics.len(), count);
    }

    #[test]
    fn states_are_lower_case_in_json() {
        let json = serde_json::to_value(Finding::warning("x", "y").because("c", "r")).unwrap();
        let wanted = serde_json::json!({
            "topic": "x", "state": "warning", "detail": "y", "cause": "c", "remedy": "r"
        });
        assert_eq!(json, wanted);
    }
}
