//! One vector of MSI or MSI-X.

use std::sync::Arc;

use vmlet_bus::{Msi, MsiRoute, MsiSink, RequesterId};

/// Whom a vector's messages come from, and where they go.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) sink: Arc<dyn MsiSink>,
    pub(crate) requester: RequesterId,
}

/// A vector: its message, its mask and its pending bit.
#[derive(Debug, Default)]
pub(crate) struct Vector {
    pub(crate) message: Option<Msi>,
    /// What the route sends now.
    told: Option<Msi>,
    pub(crate) pending: bool,
    /// Made when first needed: engines have few numbers, and guests use few vectors.
    route: Option<Arc<dyn MsiRoute>>,
}

impl Vector {
    /// Sends `message` from now on, `None` while masked: what was pending goes out then.
    pub(crate) fn set(&mut self, message: Option<Msi>, sender: &Sender) {
        self.message = message;
        if let Some(route) = &self.route
            && self.told != message
        {
            route.set(message);
            self.told = message;
        }
        if message.is_some() && std::mem::take(&mut self.pending) {
            self.route(sender).trigger();
        }
    }

    /// Sends, or keeps in mind to.
    pub(crate) fn trigger(&mut self, sender: &Sender) {
        if self.message.is_some() {
            self.route(sender).trigger();
        } else {
            self.pending = true;
        }
    }

    /// The vector's way to the local APICs.
    pub(crate) fn route(&mut self, sender: &Sender) -> &Arc<dyn MsiRoute> {
        let route = self
            .route
            .get_or_insert_with(|| sender.sink.route(sender.requester));
        if self.told != self.message {
            route.set(self.message);
            self.told = self.message;
        }
        route
    }
}
