//! The book's table of control messages comes from the code's.
//!
//! `UPDATE_DOCS=1 cargo test -p vmbus-core --test message_table` writes `docs/src/protocol/messages.md` anew.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;

use vmbus_core::FeatureFlags;
use vmbus_core::message::{
    Direction, GPADL_BODY_ROOM, GPADL_HEADER_ROOM, MAX_PAYLOAD, MESSAGES, MessageInfo,
};

#[test]
fn the_book_shows_the_table_of_the_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/protocol/messages.md");
    let expected = render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, &expected).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        written == expected,
        "{} is out of date: run `UPDATE_DOCS=1 cargo test -p vmbus-core --test message_table`",
        page.display()
    );
}

#[test]
fn the_table_is_in_order_and_sizes_fit() {
    for (index, info) in MESSAGES.iter().enumerate() {
        assert_eq!(info.number as usize, index + 1, "{}", info.name);
        assert!(info.minimum_size >= 8 && info.full_size <= MAX_PAYLOAD, "{}", info.name);
        assert!(info.minimum_size <= info.full_size, "{}", info.name);
    }
}

fn render() -> String {
    let mut page = String::from(HEAD);
    for info in MESSAGES {
        let direction = match info.direction {
            Direction::ToHost => "guest → host",
            Direction::ToGuest => "host → guest",
        };
        writeln!(
            page,
            "| {} | {} | {direction} | {} | {} | {} |",
            info.number,
            info.name,
            info.first_version,
            gate(info.gate),
            sizes(info),
        )
        .unwrap();
    }
    write!(
        page,
        "\nA control message has at most {MAX_PAYLOAD} bytes. A GPADL_HEADER has room for {GPADL_HEADER_ROOM} bytes of \
         page list\n(one range and {} page numbers), a GPADL_BODY for {GPADL_BODY_ROOM} ({} page numbers).\n",
        GPADL_HEADER_ROOM / 8 - 1,
        GPADL_BODY_ROOM / 8,
    )
    .unwrap();
    page
}

const HEAD: &str = "# Control messages

<!-- Written by `UPDATE_DOCS=1 cargo test -p vmbus-core --test message_table`: edit the table in the code. -->

All messages that the bus knows, from the table that its parser and its printer use. Sizes are in bytes and count the
8-byte header; a shorter payload than the smallest size is refused, a longer one is accepted and the surplus ignored.
[Control plane](control.md) says what the messages mean.

| number | message | direction | since | feature | size |
|---|---|---|---|---|---|
";

fn gate(gate: FeatureFlags) -> String {
    let names: Vec<String> = gate
        .iter_names()
        .map(|(name, flag)| format!("{} (0x{:02x})", name.to_lowercase().replace('_', " "), flag.bits()))
        .collect();
    names.join(" or ")
}

fn sizes(info: &MessageInfo) -> String {
    match (info.has_pages, info.minimum_size == info.full_size) {
        (true, _) => format!("{} + page list", info.minimum_size),
        (false, true) => info.minimum_size.to_string(),
        (false, false) => format!("{} to {}", info.minimum_size, info.full_size),
    }
}
