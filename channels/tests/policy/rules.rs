//! Rules from a file, logs of decisions, and what either does with nonsense.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use vmbus_channels::policy::{
    Asked, AskedDevice, Decided, Decision, Direction, End, PartitionKind, PeerProcess, Priority, Question,
    Reason, Replay, Rules, WallTime, Who, replay,
};
use vmbus_channels::test_utils::join;
use vmbus_channels::{AllowAll, Device, Event, Guid, Root, TransferMode};
use vmbus_core::Version;

use crate::world::{CLASS, OTHER_CLASS, echo};

/// 12:00 on a Friday.
const NOON: WallTime = WallTime { micros: 1_795_176_000_000_000 };

fn rules(text: &str) -> Rules {
    Rules::parse(text, &[("echo", CLASS)]).unwrap_or_else(|error| panic!("{error}"))
}

fn asked(name: &str, question: Question) -> Asked {
    let who = Who {
        id: 1,
        name: name.into(),
        kind: PartitionKind::Process,
        process: Some(PeerProcess { pid: 1, uid: 1000, gid: 1000 }),
    };
    Asked { at: NOON, end: End::Root, who, question }
}

fn device(class: Guid) -> AskedDevice {
    AskedDevice { name: "disk.img".into(), class, instance: class, subchannel: 0 }
}

fn open(class: Guid) -> Question {
    Question::Open { device: device(class), ring_bytes: 8192 }
}

fn reason(decision: &Decision) -> &str {
    match decision {
        Decision::Deny(refusal) => &refusal.reason,
        other => panic!("expected a denial: {other:?}"),
    }
}

#[test]
fn the_first_rule_that_fits_decides() {
    let rules = rules(
        r#"
        default = "deny"
        [[rule]]
        partition = ["web-*", "db"]
        class = "echo"
        decide = "deny"
        reason = "no echoes"
        [[rule]]
        partition = "web-*"
        "#,
    );
    let decide = |name, question| rules.decide(&asked(name, question));
    assert_eq!(reason(&decide("web-1", open(CLASS))), "no echoes");
    assert_eq!(decide("web-1", open(OTHER_CLASS)), Decision::Allow);
    assert_eq!(decide("web-1", Question::Attach { memory: 0 }), Decision::Allow);
    assert_eq!(reason(&decide("db", open(OTHER_CLASS))), "no rule allows it");
}

#[test]
fn rules_fit_by_kind_user_instance_name_service_and_question() {
    for (rule, fits) in [
        ("kind = 'process'", true),
        ("kind = 'vm'", false),
        ("uid = 1000", true),
        ("uid = [0, 1]", false),
        ("instance = '5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b01'", true),
        ("instance = '5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b02'", false),
        ("device = '*.img'", true),
        ("device = '*.iso'", false),
        ("class = '5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b01'", true),
        ("service = '5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b02'", false),
        ("asks = ['open', 'join']", true),
        ("asks = ['attach']", false),
        ("when = { days = ['fri'], from = '11:00', to = '13:00' }", true),
        ("when = { days = ['sat'] }", false),
    ] {
        let rules = rules(&format!("[[rule]]\n{rule}"));
        let decision = rules.decide(&asked("guest", open(CLASS)));
        assert_eq!(decision == Decision::Allow, fits, "{rule}");
    }
    let service = rules("[[rule]]\nservice = '5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b02'");
    let connect = Question::Connect { service: OTHER_CLASS, direction: Direction::Outgoing, to: None };
    assert_eq!(service.decide(&asked("guest", connect)), Decision::Allow);
}

#[test]
fn versions_have_floors() {
    let rules = rules("min_version = '4.0'\n[[rule]]\npartition = 'new'\nmin_version = '5.3'\n[[rule]]");
    let speak = |name, version| {
        rules.decide(&asked(name, Question::Version { version, features: 0, client_id: None }))
    };
    assert_eq!(speak("old", Version::Win10), Decision::Allow);
    assert_eq!(reason(&speak("old", Version::Win8_1)), "version 3.0 is below 4.0");
    assert_eq!(reason(&speak("new", Version::Win10)), "version 4.0 is below 5.3");
    assert_eq!(speak("new", Version::Iron), Decision::Allow);
}

#[test]
fn limits_are_for_the_questions_that_they_concern() {
    let rules = rules(
        r#"
        [[rule]]
        limits.rings = "64K"
        limits.shared = "1M"
        limits.subchannels = 3
        limits.rate = { requests = 10, bytes = "1M", burst = "50ms" }
        limits.deliver_after = "5ms"
        limits.deliver_between = { from = "18:00", to = "20:00" }
        limits.priority = "high"
        limits.quotas = { channels = 7 }
        limits.transfer = [{ up_to = "4K", mode = "copy" }, { up_to = "1M", mode = "share" }, { mode = "give" }]
        "#,
    );
    let limits = |question| match rules.decide(&asked("guest", question)) {
        Decision::Change(limits) => *limits,
        other => panic!("{other:?}"),
    };
    let opened = limits(open(CLASS));
    let rate = opened.rate.unwrap();
    assert_eq!((opened.ring_bytes, opened.priority), (Some(65536), Some(Priority::High)));
    assert_eq!((rate.requests, rate.bytes, rate.burst_ms), (Some(10), Some(1 << 20), Some(50)));
    let deliver = opened.deliver.unwrap();
    assert_eq!(deliver.after_us, Some(5000));
    assert_eq!(deliver.not_before, Some(WallTime { micros: NOON.micros + 6 * 3600 * 1_000_000 }));
    assert_eq!(limits(Question::Attach { memory: 0 }).quotas.unwrap().channels, Some(7));
    let share = |bytes| Question::Share {
        device: Some(device(CLASS)),
        bytes,
        held: 0,
        mode: TransferMode::Give,
        before_open: false,
    };
    let modes = [4096, 4097, 1 << 20, 1 << 30].map(|bytes| limits(share(bytes)).mode);
    use TransferMode::{Copy, Give, Share};
    assert_eq!(modes, [Copy, Share, Share, Give].map(Some));
    assert_eq!(rules.decide(&asked("guest", Question::Offer { device: device(CLASS) })), Decision::Allow);
}

#[test]
fn mistakes_are_told_with_their_line() {
    for (text, line, words) in [
        ("default = 'perhaps'", 1, "perhaps"),
        ("default = 'deny'\n\n[[rule]]\npartitions = 'a'", 4, "partitions"),
        ("[[rule]]\n[[rule]]\nclass = 'floppy'", 3, "`floppy` is no class: expected a GUID, or one of echo"),
        ("[[rule]]\nlimits.rings = '64Q'", 2, "a size such as"),
        ("[[rule]]\nlimits.deliver_after = 5", 2, "a duration such as"),
        ("[[rule]]\nmin_version = '7.0'", 2, "not a VMBus version"),
        ("[[rule]]\n\nwhen = { from = '25:00' }", 3, "`25:00` is no time of the day"),
        ("[[rule]]\nwhen = { zone = 'Mars/Base' }", 2, "no time zone"),
        ("\n[[rule]]\ndecide = 'deny'\nlimits.rings = 1", 2, "a rule that denies has no limits"),
        ("[[rule]]\nreason = 'x'", 1, "only a rule that denies"),
        ("[[rule]]\nasks = []", 1, "asks about nothing"),
        ("[[rule]]\nlimits.rate = { requests = 0 }", 1, "a rate of 0"),
        ("[[rule]]\nlimits.transfer = [{ mode = 'give' }, { mode = 'copy' }]", 1, "from small to large"),
        ("[[rule]\n", 1, ""),
    ] {
        let error = Rules::parse(text, &[("echo", CLASS)]).unwrap_err();
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}

#[tokio::test]
async fn a_log_that_is_replayed_gives_the_same_decisions_or_tells_which_differ() {
    let strict = "default = 'allow'\n[[rule]]\nclass = 'echo'\nasks = ['open']\nlimits.rings = '1G'";
    let root = Root::builder().policy(rules(strict)).build();
    root.offer(echo(CLASS)).unwrap();
    let mut events = root.events();
    let guest = join(&root, "guest").await.unwrap();
    let _channel = guest.open(Device::class(CLASS)).await.unwrap();
    let mut log = String::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Decided(decided) = event {
            log += &serde_json::to_string(&*decided).unwrap();
            log += "\n";
        }
    }
    assert_eq!(log.lines().count(), 5, "{log}");
    log += "{\"missed\":3}\n";

    let same = replay(log.as_bytes(), &rules(strict)).await.unwrap();
    assert_eq!(same, Replay { same: 5, missed: 3, ..Replay::default() });
    let other = replay(log.as_bytes(), &rules("default = 'allow'")).await.unwrap();
    assert_eq!((other.same, other.differ, other.is_same()), (4, 1, false));
    assert!(matches!(other.differences[0].logged.asked.question, Question::Open { .. }));
    assert_eq!(other.differences[0].now, Decision::Allow);

    log = log.replace("\"reason\":\"agent\"", "\"reason\":\"silence\"") + "nonsense\n";
    let others = replay(log.as_bytes(), &AllowAll).await.unwrap();
    assert_eq!((others.same, others.others, others.unreadable[0].0), (0, 5, 7));
}

#[tokio::test(start_paused = true)]
async fn when_a_window_closes_what_it_allowed_ends() {
    let rules = rules(
        "default = 'allow'\n\
         [[rule]]\nclass = 'echo'\nasks = ['open']\nwhen = { from = '11:00', to = '13:00' }\n\
         [[rule]]\nclass = 'echo'\nasks = ['open']\ndecide = 'deny'\nreason = 'after hours'",
    );
    // One hour before the window closes, on a clock that follows the virtual one.
    let began = tokio::time::Instant::now();
    let looks = Arc::new(AtomicU64::new(0));
    let clock = {
        let looks = Arc::clone(&looks);
        move || {
            looks.fetch_add(1, Ordering::Relaxed);
            WallTime { micros: NOON.micros + u64::try_from(began.elapsed().as_micros()).unwrap() }
        }
    };
    let root = Root::builder().policy(rules).policy_clock(clock).build();
    root.offer(echo(CLASS)).unwrap();
    root.offer(echo(OTHER_CLASS)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let other = guest.open(Device::class(OTHER_CLASS)).await.unwrap();
    channel.closed().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3600) && took < Duration::from_secs(3700), "{took:?}");
    assert_eq!(channel.closed_because(), Some("after hours"));
    assert!(!other.is_closed());
    assert!(looks.load(Ordering::Relaxed) < 1000);
}

/// Text made of what the parsers look for.
fn soup(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => proptest::sample::select(words).prop_map(str::to_owned),
        1 => "\\PC{0,6}",
        1 => any::<i64>().prop_map(|number| number.to_string()),
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_file_of_rules_makes_the_parser_or_the_rules_panic(text in soup(&[
        "[[rule]]\n", "default = ", "'deny'\n", "'allow'\n", "when = { ", "from = ", "to = ", "'24:00'", "'08:30'",
        "days = ['mon'] ", " }\n", ", ", "limits.", "rate = { ", "requests = ", "bytes = ", "burst = ", "'5ms'", "'1G'",
        "transfer = [", "{ up_to = ", "mode = 'copy' }", "]\n", "\n", "class = ", "partition = ", "'*'", "min_version = ",
        "'5.0'\n", "zone = ", "'local'", "'Europe/Berlin'", "deliver_between = { ", "rings = ", "quotas = { channels = ",
    ]), at in any::<u64>()) {
        if let Ok(rules) = text.parse::<Rules>() {
            let mut asked = asked("guest", open(CLASS));
            asked.at = WallTime { micros: at };
            let first = rules.decide(&asked);
            prop_assert_eq!(first, rules.decide(&asked));
            let _ = vmbus_channels::PolicyAgent::next_change(&rules, asked.at);
        }
    }

    #[test]
    fn no_log_makes_the_replay_panic(lines in proptest::collection::vec(any::<u8>(), 0..2000), cut in any::<usize>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(replay(&lines[..], &AllowAll)).unwrap();
        let decided = Decided {
            seq: 1,
            asked: asked("guest", open(CLASS)),
            decision: Decision::deny("no"),
            agent: "rules".into(),
            reason: Reason::Agent,
            took_us: 3,
        };
        let mut line = serde_json::to_vec(&decided).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<Decided>(&line).unwrap(), &decided);
        let at = cut % line.len();
        line[at] = lines.first().copied().unwrap_or(0);
        runtime.block_on(replay(&line[..], &AllowAll)).unwrap();
    }
}
