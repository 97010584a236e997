//! A scenario as a script: who is there, what happens when, and what the schedule does to it.
//!
//! A script says everything: played twice it is the same story to the last message. It has a text form of one line
//! for each statement ([`std::fmt::Display`], [`Script::parse`]), so that a failing one can be pasted into a test:
//!
//! ```text
//! guest newest=5.3 root=6.0 policy=allow-all quotas=wide
//! 10 offer guest=0 channel=3
//! 40 open guest=0 channel=3 pages=4
//! 60 rescind guest=0 channel=3
//! late guest=0 lane=to-guest nth=4 ticks=30
//! ```

mod text;

use std::fmt;
use std::str::FromStr;

use vmbus_core::Version;

/// Virtual time. Most things take one tick.
pub type Tick = u64;

/// One scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The guests, from 0. Each has a root's partition of its own.
    pub guests: Vec<GuestSetup>,
    /// What happens, in order of time.
    pub actions: Vec<(Tick, Action)>,
    /// What is not as it usually is: everything else takes one tick and succeeds.
    pub disturbances: Vec<Disturbance>,
    /// A rule that the model of the root breaks on purpose, to show that it is noticed.
    pub broken: Option<Broken>,
}

/// Declares an enum whose variants are words of the text form.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word for it.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.word())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|known| known.word() == text);
                found.copied().ok_or_else(|| format!("{text:?} is none of the {}", stringify!($name)))
            }
        }
    };
}

words! {
    /// Who decides what a guest and its root allow.
    Decides {
        /// Nobody is asked.
        AllowAll "allow-all",
        /// The root's policy is asked, and the guest's own.
        Ask "ask",
    }
}

words! {
    /// The bounds of what a guest can make its root hold.
    Bounds {
        /// The usual ones, which no scenario reaches.
        Wide "wide",
        /// A handful of everything.
        Tight "tight",
    }
}

words! {
    /// A way on which something is under way, for a while.
    Lane {
        /// The guest's next message is posted; refused, its buffers are full and it tries again.
        Post "post",
        /// A message on its way to the root.
        ToRoot "to-root",
        /// A message on its way to the guest.
        ToGuest "to-guest",
        /// The root's policy decides.
        Decide "decide",
        /// The guest's policy decides.
        GuestDecide "guest-decide",
        /// A device opens.
        Open "open",
        /// A device closes.
        Close "close",
        /// A device lets go of a page list.
        LetGo "let-go",
        /// A device serves a request.
        Serve "serve",
        /// A doorbell on its way to the root.
        Doorbell "doorbell",
        /// An interrupt on its way to the guest.
        Interrupt "interrupt",
        /// The root's worker of a channel is scheduled.
        RootWork "root-work",
        /// The guest's worker of a channel is scheduled.
        GuestWork "guest-work",
        /// The news that the other end has died.
        HangUp "hang-up",
        /// A guest gives back the id of a rescinded channel.
        Release "release",
    }
}

words! {
    /// A rule that the root's model breaks on purpose. The product has no such switch.
    Broken {
        /// Every second interrupt is lost.
        LosesInterrupts "loses-interrupts",
        /// The worker sleeps without the last look at its ring.
        SleepsWithoutLook "sleeps-without-look",
        /// A request is completed twice.
        CompletesTwice "completes-twice",
        /// A request is forgotten.
        ForgetsRequest "forgets-request",
        /// A byte of a completion changes on the way.
        FlipsByte "flips-byte",
        /// A device that was told to close never says that it has.
        NeverCloses "never-closes",
        /// Page lists are let go of in words while the device uses them still.
        KeepsPages "keeps-pages",
        /// The death of a guest is not passed on.
        IgnoresDeath "ignores-death",
        /// A channel whose interrupts were moved goes on as before.
        IgnoresRetarget "ignores-retarget",
        /// What devices were doing is not taken up again when their root is restored.
        ForgetsService "forgets-service",
    }
}

/// How one guest and its root's end are configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSetup {
    /// The newest version that the guest speaks; it speaks all below.
    pub newest: Version,
    /// The newest version that the root accepts from it.
    pub root: Version,
    /// Whether policies are asked.
    pub policy: Decides,
    /// What the guest may make the root hold.
    pub quotas: Bounds,
}

impl Default for GuestSetup {
    fn default() -> Self {
        Self {
            newest: Version::NEWEST,
            root: Version::NEWEST,
            policy: Decides::AllowAll,
            quotas: Bounds::Wide,
        }
    }
}

/// A channel as scripts name it: a device, and the number of the sub-channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// The device. From [`Channel::FIRST_CALL`] on: one end of an hvsock connection.
    pub device: u8,
    /// 0 for the primary channel.
    pub sub: u8,
}

impl Channel {
    /// The first number of those for hvsock connections.
    pub const FIRST_CALL: u8 = 128;

    /// The primary channel of a device.
    pub const fn primary(device: u8) -> Self {
        Self { device, sub: 0 }
    }
}

/// Declares the actions: their words, and their fields in the order of the text form.
macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident $word:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty),* };)*) => {
        /// Something that happens. What cannot happen at the time (a close of what is not open) does nothing, so
        /// that a script with some actions left out is a script too.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Action { $($(#[$doc])* $variant { $($(#[$field_doc])* $field: $type),* },)* }

        impl Action {
            /// The word for it.
            pub const fn word(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $word,)* }
            }

            /// The words of all actions.
            pub const WORDS: &'static [&'static str] = &[$($word,)*];

            fn parse(word: &str, fields: &mut text::Fields<'_>) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant { $($field: fields.take(stringify!($field))?),* }),)*
                    other => Err(format!("{other:?} is no action")),
                }
            }
        }

        impl fmt::Display for Action {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.word())?;
                match self {
                    $(Self::$variant { $($field),* } => {
                        $(write!(formatter, concat!(" ", stringify!($field), "={}"), $field)?;)*
                    })*
                }
                Ok(())
            }
        }
    };
}

actions! {
    /// The root offers a channel to a guest, and to whoever takes the guest's place.
    Offer "offer" { /// To whom.
        guest: u8, /// What.
        channel: Channel };
    /// The root takes a channel back; a primary one with its sub-channels.
    Rescind "rescind" { /// From whom.
        guest: u8, /// What.
        channel: Channel };
    /// The guest connects again after it has left.
    Connect "connect" { /// Who.
        guest: u8 };
    /// The guest leaves the bus.
    Unload "unload" { /// Who.
        guest: u8 };
    /// The guest opens a channel.
    Open "open" { /// Who.
        guest: u8, /// What.
        channel: Channel, /// Pages of both rings.
        pages: u8 };
    /// The guest closes a channel, or gives up opening it.
    Close "close" { /// Who.
        guest: u8, /// What.
        channel: Channel };
    /// The guest closes an open channel and opens it again at once, on other rings.
    Reopen "reopen" { /// Who.
        guest: u8, /// What.
        channel: Channel };
    /// The guest sends requests on an open channel.
    Request "request" { /// Who.
        guest: u8, /// Where.
        channel: Channel, /// How many.
        count: u8, /// Bytes of each, beyond its head.
        bytes: u16 };
    /// The guest shares pages with a channel's device.
    Share "share" { /// Who.
        guest: u8, /// Where.
        channel: Channel, /// How many.
        pages: u8 };
    /// The guest asks shared pages back, those it shared first.
    Unshare "unshare" { /// Who.
        guest: u8, /// Where.
        channel: Channel };
    /// The guest moves a channel's interrupts to another virtual processor.
    Modify "modify" { /// Who.
        guest: u8, /// What.
        channel: Channel, /// Where to.
        vp: u8 };
    /// The guest gives a closed channel back unasked.
    GiveBack "give-back" { /// Who.
        guest: u8, /// What.
        channel: Channel };
    /// The guest connects to an hvsock service.
    Call "call" { /// Who.
        guest: u8, /// The number of the channel that answers.
        device: u8 };
    /// The guest asks the root to be silent.
    Pause "pause" { /// Who.
        guest: u8 };
    /// The guest lets the root speak again.
    Resume "resume" { /// Who.
        guest: u8 };
    /// The guest gives the root other monitor pages.
    Monitor "monitor" { /// Who.
        guest: u8 };
    /// The guest begins anew without a word, as after a kernel crash; its partition stays.
    Reboot "reboot" { /// Who.
        guest: u8 };
    /// The guest's virtual machine is reset: the root is told, and the guest begins anew.
    Reset "reset" { /// Who.
        guest: u8 };
    /// The root's end of the guest is saved and restored, as if another root process had taken over its memory.
    SaveRoot "save-root" { /// Whose.
        guest: u8, /// A device that cannot be saved, if there is one of this number: it is taken back from the guest.
        lost: u8 };
    /// The guest's end is saved and restored.
    SaveGuest "save-guest" { /// Who.
        guest: u8 };
    /// The guest's process dies.
    Kill "kill" { /// Who.
        guest: u8 };
    /// A process takes the place of the dead guest.
    Restart "restart" { /// Who.
        guest: u8 };
    /// The root's process dies.
    KillRoot "kill-root" {};
    /// A root takes the place of the dead one.
    RestartRoot "restart-root" {};
}

impl Action {
    /// The guest whose business it is.
    pub fn guest(mut self) -> Option<u8> {
        self.guest_mut().copied()
    }

    pub(super) fn guest_mut(&mut self) -> Option<&mut u8> {
        match self {
            Self::Offer { guest, .. }
            | Self::Rescind { guest, .. }
            | Self::Connect { guest }
            | Self::Unload { guest }
            | Self::Open { guest, .. }
            | Self::Close { guest, .. }
            | Self::Reopen { guest, .. }
            | Self::Request { guest, .. }
            | Self::Share { guest, .. }
            | Self::Unshare { guest, .. }
            | Self::Modify { guest, .. }
            | Self::GiveBack { guest, .. }
            | Self::Call { guest, .. }
            | Self::Pause { guest }
            | Self::Resume { guest }
            | Self::Monitor { guest }
            | Self::Reboot { guest }
            | Self::Reset { guest }
            | Self::SaveRoot { guest, .. }
            | Self::SaveGuest { guest }
            | Self::Kill { guest }
            | Self::Restart { guest } => Some(guest),
            Self::KillRoot {} | Self::RestartRoot {} => None,
        }
    }
}

/// Something on a lane that does not go as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// What happens to it.
    pub what: Disturbs,
    /// Whose lane it is.
    pub guest: u8,
    /// The lane.
    pub lane: Lane,
    /// Which of those that take this lane, from 0.
    pub nth: u32,
}

/// What happens to something that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbs {
    /// It takes so many ticks more. Messages do not overtake each other all the same; others do.
    Late(Tick),
    /// It comes a second time so many ticks later. Only doorbells and interrupts do.
    Twice(Tick),
    /// It ends in a refusal: a policy denies, a device does not open, a message is not taken.
    Refused,
}

impl Script {
    /// Reads the text form. Empty lines and what follows a `#` are left out.
    ///
    /// # Errors
    /// The line that cannot be read, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        text::parse(text)
    }
}
