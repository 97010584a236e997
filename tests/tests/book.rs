//! The book keeps its promises: links lead somewhere, and the sections that code cites exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.with_file_name(path) };
            let found = target.exists()
                && (anchor.is_empty()
                    || headings(&read(&target)).iter().any(|heading| slug(heading) == anchor));
            if !found {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_in_the_summary() {
    let book = Path::new(ROOT).join("docs/src");
    let summary = read(&book.join("SUMMARY.md"));
    let listed: BTreeSet<PathBuf> = links(&summary).map(|link| book.join(link)).collect();
    let written: BTreeSet<PathBuf> =
        files_below(&book, "md").into_iter().filter(|path| !path.ends_with("SUMMARY.md")).collect();
    assert_eq!(listed, written);
}

#[test]
fn every_section_that_code_cites_exists() {
    let mut missing = Vec::new();
    let mut found = 0;
    for source in files_below(Path::new(ROOT), "rs") {
        let text = uncommented(&read(&source));
        for (page, section) in citations(&text) {
            let places =
                ["docs/src/protocol", "docs/src"].map(|folder| Path::new(ROOT).join(folder).join(&page));
            let cited = |path: &PathBuf| {
                path.is_file() && headings(&read(path)).iter().any(|heading| *heading == section)
            };
            if places.iter().any(cited) {
                found += 1;
            } else {
                missing.push(format!("{}: {page}, {section:?}", source.display()));
            }
        }
    }
    assert!(missing.is_empty(), "cited sections that are not in the book:\n{}", missing.join("\n"));
    assert!(found > 0, "nothing cites the book: the pattern must have gone wrong");
}

/// The Markdown pages of the project.
fn pages() -> Vec<PathBuf> {
    let mut pages = files_below(&Path::new(ROOT).join("docs"), "md");
    pages.extend(["README.md", "CONTRIBUTING.md"].map(|name| Path::new(ROOT).join(name)));
    pages
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files.extend(files_below(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands in `](...)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link)
}

/// The texts of all headings, without those in code blocks.
fn headings(text: &str) -> Vec<&str> {
    let mut in_code = false;
    text.lines()
        .filter(|line| {
            in_code ^= line.starts_with("```");
            !in_code
        })
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| line.trim_start_matches('#').trim())
        .collect()
}

/// A heading as the fragment of a link, the way renderers make it.
fn slug(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            other => other.is_alphanumeric().then_some(other),
        })
        .collect()
}

/// The text with comment markers and line breaks as single spaces, so that a citation may wrap.
fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!']).trim());
    lines.collect::<Vec<_>>().join(" ")
}

/// Pairs of page and section from citations such as: `control.md`, "Versions".
fn citations(text: &str) -> Vec<(String, String)> {
    let mut citations = Vec::new();
    for (at, _) in text.match_indices(".md") {
        let rest = text[at + 3..].trim_start_matches('`');
        let Some(section) = rest.strip_prefix(", \"").and_then(|rest| rest.split_once('"')) else { continue };
        let name_start =
            text[..at].rfind(|c: char| !(c.is_alphanumeric() || c == '-')).map_or(0, |at| at + 1);
        citations.push((format!("{}.md", &text[name_start..at]), section.0.to_owned()));
    }
    citations
}
