//! Scenarios of the whole bus in the simulator: many seeds, and the proof that a broken root is found and its scenario
//! made short. The long campaign is the binary `sim` of this package.

use vmbus_tests::sim::{
    Broken, Campaign, Coverage, Finding, Script, generate, minimise, run_campaign, simulate, trace,
};

const SEEDS: u64 = 2000;
/// The states of a channel at a root, as the specification names them.
const STATES: [&str; 10] = [
    "ClientReleased",
    "Closed",
    "Opening",
    "Open",
    "Closing",
    "ClosingReopen",
    "OpeningClientRelease",
    "ClosingClientRelease",
    "Revoked",
    "Reoffered",
];

fn campaign(seeds: u64, broken: Option<Broken>, jobs: usize) -> (Coverage, Option<Finding>) {
    let campaign = Campaign { first: 0, seeds, guests: 4, devices: 16, jobs, broken };
    run_campaign(&campaign, |_| {})
}

/// The story of a failing scenario, as short as it gets.
fn story(finding: &Finding) -> String {
    let (script, _) = minimise(&finding.script);
    let (lines, _) = trace(&script);
    let Finding { seed, violation, .. } = finding;
    format!("seed {seed}: {violation}\n\n{script}\n{}", lines.join("\n"))
}

#[test]
fn whatever_happens_to_four_guests_and_sixteen_devices_all_ends_once_and_nothing_is_left() {
    let seeds = if std::env::var_os("VMBUS_LONG").is_some() { 50 * SEEDS } else { SEEDS };
    let jobs = std::thread::available_parallelism().map_or(1, Into::into);
    let (coverage, finding) = campaign(seeds, None, jobs);
    println!("{coverage}");
    assert!(finding.is_none(), "{}", finding.as_ref().map(story).unwrap_or_default());
    // What never happened was not tested.
    for state in STATES {
        assert!(coverage.server_states(state) >= 10, "{state} is too rare");
    }
    for info in vmbus_core::message::MESSAGES {
        let reserved = info.name.contains("RESERVED");
        assert!(reserved || coverage.messages(info.name) >= 10, "{} is too rare", info.name);
    }
    for word in vmbus_tests::sim::Action::WORDS {
        assert!(coverage.actions(word) >= 10, "{word} is too rare");
    }
    let unfinished = coverage.requests - coverage.completed;
    assert!(unfinished > 0 && unfinished < coverage.completed, "few channels end with requests in flight");
}

#[test]
fn a_root_that_breaks_a_rule_is_found_and_its_scenario_made_short() {
    for &broken in Broken::ALL {
        // On one thread it is the same seed each time.
        let (_, finding) = campaign(200, Some(broken), 1);
        let finding = finding.unwrap_or_else(|| panic!("a root that {broken} is not noticed"));
        let (script, plays) = minimise(&finding.script);
        println!("{broken}: {} actions to {script} in {plays} plays", finding.script.actions.len());
        assert!(finding.script.actions.len() > 20, "{broken}: the scenario was short before");
        assert!(script.actions.len() <= 6, "{broken}: {}", story(&finding));
        assert!(script.disturbances.len() <= 3, "{broken}: {}", story(&finding));
        // Its text is all that is needed.
        let pasted = Script::parse(&script.to_string()).unwrap();
        let again = simulate(&pasted).unwrap_err();
        assert_eq!(again.rule, finding.violation.rule);
        assert_eq!(Err(again), simulate(&script).map(|_| ()));
        // And without the broken rule there is nothing to find in it.
        simulate(&Script { broken: None, ..script }).unwrap();
    }
}

#[test]
fn a_script_is_the_same_story_each_time() {
    for seed in 0..20 {
        let script = generate(seed, 4, 16);
        assert_eq!(trace(&script).0, trace(&script).0, "seed {seed}");
        assert_eq!(script, generate(seed, 4, 16));
    }
    assert_ne!(generate(1, 4, 16), generate(2, 4, 16));
}

#[test]
fn a_scenario_may_have_one_guest_or_sixteen() {
    for (guests, devices) in [(1, 1), (1, 64), (16, 2), (16, 64)] {
        let campaign = Campaign { first: 7, seeds: 20, guests, devices, jobs: 1, broken: None };
        let (_, finding) = run_campaign(&campaign, |_| {});
        assert!(finding.is_none(), "{guests} {devices}: {}", finding.as_ref().map(story).unwrap_or_default());
    }
}
