//! The book's page on coverage: each message, version, feature and transition, with a test that exercises it.
//!
//! Nobody writes the page: the stories of this test binary are run, what the state machines did is seen
//! ([`vmbus_core::trace`]), and the page names for each thing one story that did it. A story on the page is kept as long
//! as it still does what the page says; for what is new the story that does the least else is taken.
//! `UPDATE_DOCS=1 cargo test -p vmbus-core --test control coverage` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use vmbus_core::message::{Direction, MESSAGES};
use vmbus_core::trace::{End, Item, Machine, record};
use vmbus_core::{FeatureFlags, Version};

/// A test: its name and itself.
pub(crate) type Story = (&'static str, fn());

/// Tests of a module that may be named on the page.
macro_rules! stories {
    ($($name:ident)*) => {
        pub(crate) const STORIES: &[$crate::coverage::Story] =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name as fn())),*];
    };
}
pub(crate) use stories;

const ALL: &[&[Story]] = &[
    crate::transitions::STORIES,
    crate::contact::STORIES,
    crate::gpadl::STORIES,
    crate::rescind::STORIES,
    crate::subchannels::STORIES,
    crate::reserved::STORIES,
    crate::unload::STORIES,
    crate::features::STORIES,
    crate::versions::STORIES,
    crate::monitors::STORIES,
    crate::client::STORIES,
    crate::server_matrix::STORIES,
    crate::client_matrix::STORIES,
];

/// What cannot happen, and why: machine, states, events ("*" for all).
const NEVER: &[(Machine, &[&str], &[&str], &str)] = &[
    (
        Machine::ServerConnection,
        &["Disconnected", "Connected", "Paused", "Unloading", "Replacing", "Resetting", "Unloaded"],
        POLICY,
        "Policy is asked about a version while Connecting; an answer that comes later finds no question.",
    ),
    (
        Machine::ServerChannel,
        &["None"],
        &[
            "REQUESTOFFERS",
            "policy allows",
            "policy denies",
            "primary withdrawn or closed",
            "UNLOAD",
            "INITIATE_CONTACT",
            "reset",
        ],
        NOT_THERE,
    ),
    (
        Machine::ServerChannel,
        &[
            "Closed",
            "Open",
            "OpenReserved",
            "Closing",
            "ClosingReopen",
            "OpeningClientRelease",
            "ClosingClientRelease",
            "Revoked",
            "Reoffered",
        ],
        POLICY,
        "Policy is asked before an offer (ClientReleased) and before an open (Opening); what ends those takes the \
         question back.",
    ),
    (
        Machine::ServerGpadl,
        &["None"],
        &[
            "policy allows",
            "policy denies",
            "channel closed",
            "device withdrawn",
            "RELID_RELEASED",
            "UNLOAD",
            "INITIATE_CONTACT",
            "reset",
        ],
        NOT_THERE,
    ),
    (
        Machine::ServerGpadl,
        &["InProgress", "Accepted", "Recalled", "TearingDown", "Dropped"],
        POLICY,
        "Policy is asked about a list that is Offered.",
    ),
    (
        Machine::ServerGpadl,
        &["Offered", "Accepted", "Recalled", "TearingDown", "Dropped"],
        &["GPADL_BODY"],
        "A body names no channel: it is for the list of that name that is InProgress, or for none.",
    ),
    (
        Machine::ServerGpadl,
        &["InProgress", "Offered", "Recalled"],
        &["channel closed"],
        "Only an Accepted list becomes a ring, and it is recalled after its channel has closed.",
    ),
    (
        Machine::ClientConnection,
        &["Disconnected", "Contacting", "Connected", "Pausing", "Paused", "Unloading"],
        POLICY,
        "Policy is asked about a version while Asking.",
    ),
    (
        Machine::ClientChannel,
        &["None"],
        &["policy allows", "policy denies", "unload()", "UNLOAD_RESPONSE", "reset()"],
        NOT_THERE,
    ),
    (
        Machine::ClientChannel,
        &["Closed", "Open", "OpenReserved", "ClosingReserved", "Rescinded"],
        POLICY,
        "Policy is asked about an offer that is Proposed and about an open that is Opening.",
    ),
    (
        Machine::ClientGpadl,
        &["None"],
        &[
            "policy allows",
            "policy denies",
            "RESCIND_CHANNELOFFER",
            "CLOSE_RESERVED_RESPONSE",
            "unload()",
            "UNLOAD_RESPONSE",
            "reset()",
        ],
        NOT_THERE,
    ),
    (
        Machine::ClientGpadl,
        &["Asked", "Creating", "GivenUp", "Created", "TearingDown"],
        &["create_gpadl()"],
        "A list is created under a name that none has.",
    ),
    (
        Machine::ClientGpadl,
        &["Creating", "GivenUp", "Created", "TearingDown"],
        POLICY,
        "Policy is asked about a list that is Asked.",
    ),
];

const POLICY: &[&str] = &["policy allows", "policy denies"];
const NOT_THERE: &str = "This happens to what is there, not to None.";

fn all_stories() -> impl Iterator<Item = Story> {
    ALL.iter().copied().flatten().map(|(name, story)| (name.trim_start_matches("control::"), *story))
}

/// What each story did; they are run once for all who ask.
fn seen() -> &'static [(&'static str, BTreeSet<Item>)] {
    static SEEN: OnceLock<Vec<(&str, BTreeSet<Item>)>> = OnceLock::new();
    SEEN.get_or_init(|| all_stories().map(|(name, story)| (name, record(story).1)).collect())
}

#[test]
fn the_book_names_a_test_for_everything_there_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/src/protocol/coverage.md");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let page = Page::new(seen(), &Named::read(&written));
    let missing = page.missing();
    assert!(missing.is_empty(), "no test shows, and nothing says why not:\n{}", missing.join("\n"));
    let expected = page.render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            written == expected,
            "{} is out of date: run `UPDATE_DOCS=1 cargo test -p vmbus-core --test control coverage`",
            path.display()
        );
    }
}

#[test]
fn nothing_happens_that_the_book_does_not_name() {
    let known: BTreeSet<Item> = seen().iter().flat_map(|(_, items)| items).copied().collect();
    let is_step = |item: &Item| matches!(item, Item::Step { .. });
    let mut unknown = BTreeMap::new();
    for seed in 0..150 {
        let ((), items) = record(|| crate::random::live(seed, &mut crate::random::Tally::default()));
        for item in items.into_iter().filter(is_step).filter(|item| !known.contains(item)) {
            unknown.entry(item).or_insert(seed);
        }
    }
    for seed in 0..150 {
        let ((), items) = record(|| drop(crate::hostile::one_hostile_guest(seed)));
        for item in items.into_iter().filter(is_step).filter(|item| !known.contains(item)) {
            unknown.entry(item).or_insert(seed);
        }
    }
    let unknown: Vec<_> = unknown.iter().map(|(item, seed)| format!("seed {seed}: {item:?}")).collect();
    assert!(unknown.is_empty(), "no story tells of\n{}", unknown.join("\n"));
}

/// The stories that the page names at present.
#[derive(Default)]
struct Named(BTreeMap<String, String>);

impl Named {
    /// Reads the comments that name them: the tables are for people.
    fn read(page: &str) -> Self {
        let lines = page.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(" <- "));
        Self(lines.map(|(item, story)| (item.to_owned(), story.to_owned())).collect())
    }
}

/// Everything seen, each with the story that is named for it.
struct Page {
    items: BTreeMap<Item, &'static str>,
    stories: Vec<&'static str>,
}

impl Page {
    fn new(seen: &[(&'static str, BTreeSet<Item>)], named: &Named) -> Self {
        let mut by_item: BTreeMap<Item, Vec<(usize, &'static str)>> = BTreeMap::new();
        for (story, items) in seen {
            for item in items {
                by_item.entry(*item).or_default().push((items.len(), story));
            }
        }
        let mut items = BTreeMap::new();
        for (item, candidates) in by_item {
            let kept = named.0.get(&key(&item));
            let kept = candidates.iter().find(|(_, story)| kept.is_some_and(|kept| kept == story));
            let least = candidates.iter().min();
            if let Some((_, story)) = kept.or(least) {
                items.insert(item, *story);
            }
        }
        let used: BTreeSet<&str> = items.values().copied().collect();
        let stories = all_stories().map(|(name, _)| name).filter(|name| used.contains(name)).collect();
        Self { items, stories }
    }

    /// What there is and no story shows.
    fn missing(&self) -> Vec<String> {
        let mut wanted = Vec::new();
        for info in MESSAGES {
            let (says, hears) = ends(info.direction);
            wanted.push(Item::Said { end: says, number: info.number });
            wanted.push(Item::Heard { end: hears, number: info.number });
        }
        for end in [End::Host, End::Guest] {
            wanted.extend(Version::ALL.map(|version| Item::Version { end, version }));
            wanted.extend(FeatureFlags::NAMED.iter().map(|flag| Item::Feature { end, bit: flag.bits() }));
        }
        let mut missing: Vec<String> = wanted
            .iter()
            .filter(|item| !self.items.contains_key(item))
            .map(|item| format!("{item:?}"))
            .collect();
        for machine in Machine::ALL {
            for state in machine.states() {
                for event in machine.events() {
                    let shown = !self.cell(*machine, state, event).is_empty();
                    match never(*machine, state, event) {
                        None if !shown => missing.push(format!("{machine:?}: {state} and {event}")),
                        Some(_) if shown => {
                            missing.push(format!("{machine:?}: {state} and {event}, said never to meet, do"));
                        }
                        None | Some(_) => {}
                    }
                }
            }
        }
        missing
    }

    /// Next states, each with its story.
    fn cell(&self, machine: Machine, state: &str, event: &str) -> Vec<(&'static str, &'static str)> {
        let of_cell = |item: &Item| match item {
            Item::Step { machine: m, state: s, event: e, next }
                if *m == machine && *s == state && *e == event =>
            {
                Some(*next)
            }
            _ => None,
        };
        self.items.iter().filter_map(|(item, story)| Some((of_cell(item)?, *story))).collect()
    }

    fn number(&self, story: &str) -> usize {
        1 + self.stories.iter().position(|name| *name == story).expect("it is among those used")
    }

    fn render(&self) -> String {
        let mut page = String::from(HEAD);
        self.render_messages(&mut page);
        self.render_agreements(&mut page);
        for machine in Machine::ALL {
            self.render_machine(&mut page, *machine);
        }
        page.push_str("\n## Tests\n\nOf `vmbus-core/tests/control`.\n\n");
        for (index, story) in self.stories.iter().enumerate() {
            writeln!(page, "{}. `{story}`", index + 1).unwrap();
        }
        page.push_str("\n<!-- Which test was named for what:\n");
        for (item, story) in &self.items {
            writeln!(page, "  {} <- {story}", key(item)).unwrap();
        }
        page.push_str("-->\n");
        page
    }

    fn render_messages(&self, page: &mut String) {
        page.push_str("\n## Messages\n\n| number | message | said in | heard in |\n|---|---|---|---|\n");
        for info in MESSAGES {
            let (says, hears) = ends(info.direction);
            let number = info.number;
            let said = self.named(&Item::Said { end: says, number });
            let heard = self.named(&Item::Heard { end: hears, number });
            writeln!(page, "| {number} | {} | {said} | {heard} |", info.name).unwrap();
        }
    }

    fn render_agreements(&self, page: &mut String) {
        page.push_str("\n## Versions\n\n| version | host | guest |\n|---|---|---|\n");
        for version in Version::ALL {
            let [host, guest] =
                [End::Host, End::Guest].map(|end| self.named(&Item::Version { end, version }));
            writeln!(page, "| {version} | {host} | {guest} |").unwrap();
        }
        page.push_str("\n## Feature flags\n\n| bit | feature | host | guest |\n|---|---|---|---|\n");
        for (name, flag) in FeatureFlags::NAMED.iter_names() {
            let bit = flag.bits();
            let [host, guest] = [End::Host, End::Guest].map(|end| self.named(&Item::Feature { end, bit }));
            let name = name.to_lowercase().replace('_', " ");
            writeln!(page, "| 0x{bit:02x} | {name} | {host} | {guest} |").unwrap();
        }
    }

    fn named(&self, item: &Item) -> String {
        self.items.get(item).map(|story| format!("`{story}`")).unwrap_or_default()
    }

    fn render_machine(&self, page: &mut String, machine: Machine) {
        writeln!(page, "\n## {}\n\n| event | {} |", machine.title(), machine.states().join(" | ")).unwrap();
        writeln!(page, "|---|{}", "---|".repeat(machine.states().len())).unwrap();
        let mut reasons = BTreeSet::new();
        for event in machine.events() {
            write!(page, "| {event} |").unwrap();
            for state in machine.states() {
                let cell = self.cell(machine, state, event).into_iter().map(|(next, story)| {
                    let next = if next == *state { "=" } else { next };
                    format!("{next} ({})", self.number(story))
                });
                let cell: Vec<_> = cell.collect();
                reasons.extend(never(machine, state, event));
                write!(page, " {} |", cell.join(", ")).unwrap();
            }
            page.push('\n');
        }
        if !reasons.is_empty() {
            page.push_str("\nEmpty cells cannot be:\n\n");
        }
        for reason in reasons {
            writeln!(page, "* {reason}").unwrap();
        }
    }
}

/// Why an event cannot come in a state.
fn never(machine: Machine, state: &str, event: &str) -> Option<&'static str> {
    let says = |names: &[&str], name: &str| names.contains(&"*") || names.contains(&name);
    let mut reasons = NEVER
        .iter()
        .filter(|(m, states, events, _)| *m == machine && says(states, state) && says(events, event));
    reasons.next().map(|(.., why)| *why)
}

fn ends(direction: Direction) -> (End, End) {
    match direction {
        Direction::ToHost => (End::Guest, End::Host),
        Direction::ToGuest => (End::Host, End::Guest),
    }
}

fn key(item: &Item) -> String {
    match item {
        Item::Said { end, number } => format!("{end:?} says {number}"),
        Item::Heard { end, number } => format!("{end:?} hears {number}"),
        Item::Version { end, version } => format!("{end:?} version {version}"),
        Item::Feature { end, bit } => format!("{end:?} feature {bit:#04x}"),
        Item::Step { machine, state, event, next } => format!("{machine:?}: {state}, {event}: {next}"),
    }
}

const HEAD: &str = "# What the tests exercise

<!-- Written by `UPDATE_DOCS=1 cargo test -p vmbus-core --test control coverage`. Do not edit. -->

Every message, version, feature flag and state transition of the control plane, with a test that exercises it. The test
suite runs the tests that are named here, looks at what the state machines do meanwhile, and fails if one does not do
what this page says of it, if anything in the enumerations is not exercised, or if a seeded walk or a hostile guest
causes a transition that is not here.

In the tables of states a cell says what an event leads to: a state, or `=` where the state stays (for a fault, for what
is ignored, and for what takes effect later), with the number of a test in the list at the end. States are named as in
[Control plane](control.md); `None` is what is not there.
";
