//! Bugs that are put in on purpose, each in a simulated part and none in the product, so that it is seen whether the
//! checker catches them.

use std::fmt;
use std::str::FromStr;

use crate::order::Promise;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bug {
    /// A disk says that it has synced what it has not.
    NoSync,
    /// A leader hears "appended" of followers that were never asked.
    AnswerBeforeQuorum,
    /// An output moves its cursor over a task that it did not take.
    SkipCursor,
    /// An output takes tasks again that it has.
    CountTwice,
    /// An output gives a task the id of the one before.
    ReuseId,
    /// A publisher gives an output what is not final.
    PublishBeforeFinal,
    /// One node gets the messages of a batch in another order.
    OrderByArrival,
    /// A copy of the state lacks the index of what was ordered.
    ForgetRetries,
    /// A node whose disk was wiped takes part as if it had it.
    VoteAfterWipe,
    /// A retry is submitted as something new by the node that takes it in.
    ForgetContent,
    /// A node answers before the message has a place, with the place that it expects.
    GuessPosition,
    /// After a power loss a disk has half of a write.
    TornWrites,
    /// One node hears of no change of raft's members: it goes on counting the votes of those that were there first.
    OldMembers,
    /// One node leaves orders of projects' owners out.
    LoseOrders,
    /// A node that a reader moves to begins one task too early.
    FeedGoesBack,
    /// A disk gives other bytes than were written, without a word.
    ServeFlipped,
    /// A disk says that the state on it has forgotten what only the one in memory has.
    ForgetEarly,
    /// Repeats are judged by when they are proposed, however long they waited: the window has no margin, and what nodes send
    /// each other has no ages.
    WindowByProposal,
    /// A new leader answers with a place before it has applied the first entry of its term: with the next one that it knows of,
    /// which may be that of something that it inherited.
    AckBeforeApplyTerm,
    /// A disk goes on holding what it is told to forget.
    KeepsAll,
    /// A copy of the state lacks the members.
    SnapshotWithoutMembers,
    /// A disk syncs everything but votes: a node votes twice in a term.
    ReuseTermVote,
    /// A copy of the state is made, and the log before it goes, though the state that it was made of is not on the disk.
    PurgeBeforeFlush,
    /// One node goes on by older rules of `apply` where newer ones hold.
    MixedRules,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::NoSync,
        Self::AnswerBeforeQuorum,
        Self::SkipCursor,
        Self::CountTwice,
        Self::ReuseId,
        Self::PublishBeforeFinal,
        Self::OrderByArrival,
        Self::ForgetRetries,
        Self::VoteAfterWipe,
        Self::ForgetContent,
        Self::GuessPosition,
        Self::TornWrites,
        Self::OldMembers,
        Self::LoseOrders,
        Self::FeedGoesBack,
        Self::ServeFlipped,
        Self::ForgetEarly,
        Self::WindowByProposal,
        Self::AckBeforeApplyTerm,
        Self::KeepsAll,
        Self::SnapshotWithoutMembers,
        Self::ReuseTermVote,
        Self::PurgeBeforeFlush,
        Self::MixedRules,
    ];

    /// The promises of which it breaks at least one: that is what it has to be caught by.
    pub fn breaks(self) -> &'static [Promise] {
        match self {
            Self::NoSync | Self::GuessPosition | Self::AckBeforeApplyTerm => &[Promise::Kept],
            Self::WindowByProposal => &[Promise::Once],
            Self::KeepsAll => &[Promise::Bounded],
            Self::AnswerBeforeQuorum | Self::VoteAfterWipe => &[Promise::Kept, Promise::Agreement],
            Self::SkipCursor | Self::CountTwice | Self::ReuseId | Self::PublishBeforeFinal => &[Promise::Output],
            Self::OrderByArrival | Self::OldMembers | Self::TornWrites | Self::ForgetEarly => &[Promise::Agreement],
            Self::ForgetRetries => &[Promise::Agreement, Promise::Once],
            Self::SnapshotWithoutMembers | Self::PurgeBeforeFlush | Self::MixedRules => &[Promise::Agreement],
            Self::ReuseTermVote => &[Promise::Kept, Promise::Agreement],
            Self::ForgetContent => &[Promise::Origin],
            Self::LoseOrders => &[Promise::Agreement, Promise::Registry],
            Self::FeedGoesBack => &[Promise::Feed],
            Self::ServeFlipped => &[Promise::Agreement, Promise::Feed, Promise::Output],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::NoSync => "no-sync",
            Self::AnswerBeforeQuorum => "answer-before-quorum",
            Self::SkipCursor => "skip-cursor",
            Self::CountTwice => "count-twice",
            Self::ReuseId => "reuse-id",
            Self::PublishBeforeFinal => "publish-before-final",
            Self::OrderByArrival => "order-by-arrival",
            Self::ForgetRetries => "forget-retries",
            Self::VoteAfterWipe => "vote-after-wipe",
            Self::ForgetContent => "forget-content",
            Self::GuessPosition => "guess-position",
            Self::TornWrites => "torn-writes",
            Self::OldMembers => "old-members",
            Self::LoseOrders => "lose-orders",
            Self::FeedGoesBack => "feed-goes-back",
            Self::ServeFlipped => "serve-flipped",
            Self::ForgetEarly => "forget-early",
            Self::WindowByProposal => "window-by-proposal",
            Self::AckBeforeApplyTerm => "ack-before-apply-term",
            Self::SnapshotWithoutMembers => "snapshot-without-members",
            Self::ReuseTermVote => "reuse-term-vote",
            Self::PurgeBeforeFlush => "purge-before-flush",
            Self::MixedRules => "mixed-rules",
            Self::KeepsAll => "keeps-all",
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|bug| bug.name() == text)
            .ok_or_else(|| format!("no such bug; there are {}", names()))
    }
}

/// The bug that a run has, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bugs(Option<Bug>);

impl Bugs {
    /// None.
    pub fn none() -> Self {
        Self(None)
    }

    /// This one.
    pub fn only(bug: Bug) -> Self {
        Self(Some(bug))
    }

    /// Whether there is this one.
    pub fn has(self, bug: Bug) -> bool {
        self.0 == Some(bug)
    }

    /// The bug.
    pub fn get(self) -> Option<Bug> {
        self.0
    }
}
