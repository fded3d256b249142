//! The rooms of the house: a module imports only what stands below it, and files of one room form no circle. `src/lib.rs` draws the same picture.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms as the map draws them, floor by floor from the top. Those on one floor may not import each other either.
fn floors(map: &str) -> Vec<Vec<String>> {
    let picture = map.split("```").find(|block| block.contains("| app")).expect("a picture of the rooms");
    let rows = picture.lines().filter_map(|line| line.split_once("     | "));
    rows.map(|(_, row)| row.split('|').map(|room| room.trim().to_owned()).filter(|room| !room.is_empty()).collect()).collect()
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("sources").flatten() {
        let path = entry.path();
        match path.extension() {
            _ if path.is_dir() => sources(&path, files),
            Some(extension) if extension == "rs" => files.push(path),
            _ => {}
        }
    }
}

/// What of a file is no test.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

/// The rooms that `text` names as `crate::ROOM`, tests left out.
fn imported(text: &str) -> BTreeSet<String> {
    let rooms = product(text)
        .split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>());
    rooms.filter(|room| !room.is_empty()).collect()
}

#[test]
fn every_import_points_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floors = floors(&fs::read_to_string(src.join("lib.rs")).expect("the map"));
    let floor = |room: &str| {
        floors
            .iter()
            .position(|floor| floor.iter().any(|other| other == room))
            .unwrap_or_else(|| panic!("{room} is not on the map: {floors:?}"))
    };
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut up = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).expect("below src");
        let room = inside.iter().next().expect("a name").to_string_lossy().trim_end_matches(".rs").to_owned();
        if inside.starts_with("build") || ["main", "lib", "build"].contains(&&*room) || inside.ends_with("tests.rs") {
            continue;
        }
        for other in imported(&fs::read_to_string(&file).expect("text")) {
            if other != room && floor(&other) <= floor(&room) {
                up.push(format!("{} -> {other}", inside.display()));
            }
        }
    }
    assert_eq!(up, [""; 0]);
}

/// The files beside `file` that it names, as `super::FILE` or `super::{FILE, …}`, tests left out.
fn beside(file: &Path, text: &str) -> Vec<PathBuf> {
    let product: String = product(text).lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let first = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let group = |rest: &str| match rest.strip_prefix('{') {
        Some(names) => names.split(['}', ';']).next().unwrap_or_default().split(',').map(|name| first(name.trim())).collect(),
        None => vec![first(rest)],
    };
    let names = product.split("super::").skip(1).flat_map(group);
    let dir = file.parent().expect("a directory");
    names
        .flat_map(|name| [dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")])
        .filter(|path| path.exists())
        .collect()
}

/// Files of a room import each other in one direction: taking away those that import none of the rest, and then those that none of the
/// rest imports, leaves nothing.
#[test]
fn files_of_a_room_form_no_circle() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    files.retain(|file| !file.ends_with("tests.rs"));
    let imports = |file: &PathBuf| beside(file, &fs::read_to_string(file).expect("text"));
    let mut arrows: Vec<_> =
        files.iter().flat_map(|file| imports(file).into_iter().map(move |other| (file.clone(), other))).collect();
    assert!(arrows.len() > 100, "they are found");
    loop {
        let before = arrows.len();
        let (from, to): (BTreeSet<_>, BTreeSet<_>) = arrows.iter().cloned().unzip();
        arrows.retain(|(file, other)| from.contains(other) && to.contains(file));
        if arrows.len() == before {
            break;
        }
    }
    assert_eq!(arrows, []);
}

/// True if `text` defines `name`: a word of the text that follows the keyword of an item.
fn defines(text: &str, name: &str) -> bool {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    words
        .windows(2)
        .any(|pair| ["fn", "const", "static", "struct", "enum", "type", "trait", "mod"].contains(&pair[0]) && pair[1] == name)
}

/// Every file that the map names is there, and defines every name that follows it in a row of a table.
#[test]
fn the_map_names_what_is_there() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(src.join("lib.rs")).expect("the map");
    let mut wrong = Vec::new();
    let rooms = map.split("//! # The tests").next().unwrap_or_default();
    for row in rooms.lines().filter(|line| line.starts_with("//! | ")) {
        let mut text = String::new();
        for word in row.split('`').skip(1).step_by(2) {
            let is_name = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
            if word.ends_with(".rs") {
                text = fs::read_to_string(src.join(word)).unwrap_or_default();
                if text.is_empty() {
                    wrong.push(word.to_owned());
                }
            } else if is_name && !text.is_empty() && !word.rsplit("::").all(|name| defines(&text, name)) {
                wrong.push(format!("{word} in {row}"));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}
