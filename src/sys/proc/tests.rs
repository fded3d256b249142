use super::*;

#[test]
fn any_name_is_read() {
    let rest = "S 17 4711 4710 0 -1 4194560 115 0 0 0 0 0 0 0 20 0 1 0 9876543 5832704";
    for name in ["sh", "a) R 1 (b", "((", "))", "", "x\ny", " "] {
        let line = format!("4711 ({name}) {rest}\n");
        let stat = Stat::parse(4711, line.as_bytes()).expect("a whole line");
        let (group, session) = (4711, 4710);
        let expected =
            Stat { pid: 4711, name: stat.name, state: b'S', parent: 17, group, session, threads: 1, start: 9_876_543 };
        assert_eq!((stat, stat.name()), (expected, name.to_owned()));
    }
}

#[test]
fn cut_line_is_no_process() {
    let line = b"4711 (sh) S 17 4711 4711 0 -1 4194560 115 0 0 0 0 0 0 0 20 0 1 0 9876543";
    for length in 0..line.len() - 6 {
        assert_eq!(Stat::parse(4711, &line[..length]), None, "{length}");
    }
}

#[test]
fn flocks_are_told_from_other_locks() {
    let file = FileId { device: libc::makedev(8, 0x21), inode: 1234 };
    let flock = |waits| Some((Flock { pid: 4711, waits, is_exclusive: !waits }, file));
    assert_eq!(parse_flock("1: FLOCK  ADVISORY  WRITE 4711 08:21:1234 0 EOF"), flock(false));
    assert_eq!(parse_flock("12: -> FLOCK  ADVISORY  READ  4711 08:21:1234 0 EOF"), flock(true));
    for other in ["", "1:", "1: POSIX  ADVISORY  WRITE 4711 08:21:1234 0 EOF", "1: FLOCK  ADVISORY  WRITE 4711 08:21"] {
        assert_eq!(parse_flock(other), None, "{other:?}");
    }
}

#[test]
fn we_are_among_all() {
    assert!(is_of_our_pid_namespace());
    assert!(Stat::all().iter().any(|stat| stat.pid == process::id() as i32));
}
