//! The senders whose conventions are known.

use crate::routing::Verification;

/// What is known about the requests of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WebhookSender {
    GitHub,
    GitLab,
    Stripe,
    Slack,
    StandardWebhooks,
    CloudEvents,
    Other,
}

impl WebhookSender {
    pub(super) fn of(verification: &Verification) -> Self {
        match verification {
            Verification::GitHub { .. } => Self::GitHub,
            Verification::GitLab { .. } => Self::GitLab,
            Verification::Stripe { .. } => Self::Stripe,
            Verification::Slack { .. } => Self::Slack,
            Verification::StandardWebhooks { .. } => Self::StandardWebhooks,
            Verification::CloudEvents { .. } => Self::CloudEvents,
            Verification::Hmac(_)
            | Verification::Token { .. }
            | Verification::Basic { .. }
            | Verification::Nothing {} => Self::Other,
        }
    }
}
