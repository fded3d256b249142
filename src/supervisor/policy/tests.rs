//! Every state against every input, without a clock.

use super::*;

const GRACE: Duration = Duration::from_secs(5);
const TERMINAL: SignalSource = SignalSource::Kernel;
pub(super) const PROCESS: SignalSource = SignalSource::Process(4711);

pub(super) struct Case {
    pub(super) policy: Policy,
    pub(super) start: Instant,
}

fn config() -> PolicyConfig {
    PolicyConfig {
        hard_limit: Some(Duration::from_secs(60)),
        result_grace: Some(Duration::from_secs(30)),
        task_grace: Some(Duration::from_secs(600)),
        kill_grace: Some(GRACE),
        ..PolicyConfig::default()
    }
}

pub(super) fn case(change: impl FnOnce(&mut PolicyConfig)) -> Case {
    let mut config = config();
    change(&mut config);
    let start = Instant::now();
    Case { policy: Policy::new(config, start), start }
}

impl Case {
    fn at(&mut self, seconds: u64, input: Input) -> Vec<Action> {
        self.policy.decide(input, self.start + Duration::from_secs(seconds))
    }

    fn term(&mut self, seconds: u64) -> Vec<Action> {
        self.at(seconds, Input::Signal(Signal::SIGTERM, PROCESS))
    }

    fn deadline(&self) -> Option<u64> {
        self.policy.next_deadline().map(|at| (at - self.start).as_secs())
    }
}

#[test]
fn child_that_ends_alone_ends_the_run() {
    let mut case = case(|_| {});
    assert_eq!(case.deadline(), Some(60));
    assert_eq!(case.at(1, Input::Ended(Outcome::Exited(3), TreeState::Empty)), []);
    assert_eq!(case.policy.result(), Some(Outcome::Exited(3)));
}

#[test]
fn hard_limit_is_term_then_kill_to_the_tree() {
    let mut case = case(|_| {});
    assert_eq!(case.at(59, Input::Clock), []);
    assert_eq!(
        case.at(60, Input::Clock),
        [Action::SignalChild(Signal::SIGTERM), Action::Log(Notice::LimitExpired(Outcome::HardLimit))]
    );
    assert_eq!(case.deadline(), Some(62), "half of the kill grace");
    assert_eq!(case.at(63, Input::Clock), [Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::ChildStays)]);
    assert_eq!(case.deadline(), Some(65));
    assert_eq!(case.at(64, Input::Clock), []);
    assert_eq!(case.at(65, Input::Clock), [Action::KillAfterTerm, Action::Log(Notice::KillGraceExpired)]);
    assert_eq!(case.deadline(), Some(66));
    case.at(66, Input::Ended(Outcome::Killed(9), TreeState::Empty));
    assert_eq!(case.policy.result(), Some(Outcome::HardLimit));
}

#[test]
fn lost_lock_is_an_expired_limit() {
    let mut case = case(|_| {});
    assert_eq!(
        case.at(7, Input::LockLost),
        [Action::SignalChild(Signal::SIGTERM), Action::Log(Notice::LimitExpired(Outcome::LockLost))]
    );
    assert_eq!(case.at(8, Input::LockLost), [], "once");
    case.at(10, Input::Clock);
    assert_eq!(case.at(12, Input::Clock), [Action::KillAfterTerm, Action::Log(Notice::KillGraceExpired)]);
    case.at(13, Input::Ended(Outcome::Killed(9), TreeState::Empty));
    assert_eq!(case.policy.result(), Some(Outcome::LockLost));
}

#[test]
fn request_to_end_removes_no_limit() {
    let hung = Outcome::HungAfterResult { is_error: false };
    for signal in [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTERM] {
        for kill_grace in [None, Some(Duration::from_secs(600))] {
            for (input, at, limit) in [
                (Input::LockLost, 2, Outcome::LockLost),
                (Input::Clock, 5, hung),
                (Input::Clock, 10, Outcome::IdleLimit),
                (Input::Clock, 60, Outcome::HardLimit),
            ] {
                let mut asked = case(|config| {
                    config.kill_grace = kill_grace;
                    config.idle_limit = (limit == Outcome::IdleLimit).then_some(Duration::from_secs(10));
                    config.result_grace = (limit == hung).then_some(Duration::from_secs(5));
                });
                asked.at(0, FINE);
                asked.at(1, Input::Signal(signal, PROCESS));
                let expected = [Action::SignalChild(Signal::SIGTERM), Action::Log(Notice::LimitExpired(limit))];
                assert_eq!(asked.at(at, input)[..2], expected, "{signal} {limit:?}");
                asked.at(at + 1, Input::Ended(Outcome::Killed(15), TreeState::Empty));
                assert_eq!(asked.policy.result(), Some(limit));
            }
        }
    }
}

#[test]
fn lost_lock_changes_nothing_for_an_ended_child() {
    let mut leaving = case(|_| {});
    leaving.at(1, Input::Ended(Outcome::Exited(0), TreeState::Alive));
    assert_eq!(leaving.at(2, Input::LockLost), []);
    leaving.at(3, Input::TreeChanged(TreeState::Empty));
    assert_eq!(leaving.policy.result(), Some(Outcome::Exited(0)));
    let mut stopped = case(|_| {});
    stopped.at(1, Input::Stopped(Signal::SIGSTOP));
    assert!(stopped.at(2, Input::LockLost).contains(&Action::SignalChild(Signal::SIGCONT)));
}

#[test]
fn limits_that_are_off_have_no_deadline() {
    let mut case = case(|config| (config.hard_limit, config.kill_grace) = (None, None));
    assert_eq!(case.deadline(), None);
    assert_eq!(case.at(1, Input::Signal(Signal::SIGHUP, PROCESS)), [Action::SignalChild(Signal::SIGHUP)]);
    assert_eq!(case.deadline(), None);
    assert_eq!(
        case.at(2, Input::Ended(Outcome::Killed(1), TreeState::Alive)),
        [Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::Leftovers(Leftovers::Kill))]
    );
    assert_eq!(case.deadline(), None);
}

#[test]
fn idle_limit_counts_from_the_last_output() {
    let mut case = case(|config| config.idle_limit = Some(Duration::from_secs(10)));
    assert_eq!(case.deadline(), Some(10));
    let output = |case: &Case, second| Input::LastOutput(case.start + Duration::from_secs(second));
    let input = output(&case, 4);
    assert_eq!(case.at(10, input), []);
    assert_eq!((case.deadline(), case.at(10, Input::Clock)), (Some(14), vec![]));
    let input = output(&case, 2);
    case.at(11, input);
    assert_eq!(case.deadline(), Some(14), "time does not run backwards");
    let expected = [Action::SignalChild(Signal::SIGTERM), Action::Log(Notice::LimitExpired(Outcome::IdleLimit))];
    assert_eq!(case.at(14, Input::Clock), expected);
    case.at(15, Input::Ended(Outcome::Exited(0), TreeState::Empty));
    assert_eq!(case.policy.result(), Some(Outcome::IdleLimit));
    // After a result the shorter of the two counts, and each says what it is.
    for (grace, limit) in [(5, Outcome::HungAfterResult { is_error: false }), (500, Outcome::IdleLimit)] {
        let mut case = super::tests::case(|config| {
            (config.idle_limit, config.result_grace) = (Some(Duration::from_secs(10)), Some(Duration::from_secs(grace)));
        });
        case.at(0, FINE);
        let at = grace.min(10);
        assert!(case.at(at, Input::Clock).contains(&Action::Log(Notice::LimitExpired(limit))));
    }
}

const FINE: Input = Input::Frame(FrameEvent::Result { is_error: false });
const BAD: Input = Input::Frame(FrameEvent::Result { is_error: true });

#[test]
fn hang_after_a_result_ends_with_the_grace() {
    for (frame, is_error) in [(FINE, false), (BAD, true)] {
        let mut case = case(|_| {});
        case.at(1, frame);
        assert_eq!(case.at(30, Input::Clock), []);
        let limit = Outcome::HungAfterResult { is_error };
        assert_eq!(case.at(31, Input::Clock), [Action::SignalChild(Signal::SIGTERM), Action::Log(Notice::LimitExpired(limit))]);
        case.at(32, Input::Ended(Outcome::Exited(143), TreeState::Empty));
        assert_eq!(case.policy.result(), Some(limit));
    }
}

#[test]
fn later_frames_restart_the_result_grace() {
    let mut case = case(|config| config.hard_limit = None);
    case.at(1, Input::Frame(FrameEvent::Other));
    assert_eq!(case.deadline(), None, "no result yet");
    case.at(2, BAD);
    assert_eq!(case.deadline(), Some(32));
    case.at(20, Input::Frame(FrameEvent::Other));
    assert_eq!(case.deadline(), Some(50));
    case.at(40, FINE);
    case.at(70, Input::Clock);
    case.at(71, Input::Ended(Outcome::Killed(15), TreeState::Empty));
    assert_eq!(case.policy.result(), Some(Outcome::HungAfterResult { is_error: false }));
}

#[test]
fn open_tasks_have_the_task_grace() {
    let mut case = case(|config| config.hard_limit = None);
    case.at(1, Input::Frame(FrameEvent::OpenTasks(1)));
    assert_eq!(case.deadline(), None);
    case.at(2, FINE);
    assert_eq!(case.deadline(), Some(602));
    assert!(case.policy.has_open_tasks());
    case.at(100, Input::Frame(FrameEvent::OpenTasks(0)));
    assert_eq!(case.deadline(), Some(130));
    assert!(!case.policy.has_open_tasks());
}

#[test]
fn hard_limit_counts_after_a_result_as_well() {
    let mut case = case(|_| {});
    case.at(50, FINE);
    assert!(case.at(60, Input::Clock).contains(&Action::Log(Notice::LimitExpired(Outcome::HardLimit))));
    let mut off = super::tests::case(|config| (config.hard_limit, config.result_grace) = (None, None));
    off.at(1, FINE);
    assert_eq!(off.deadline(), None);
}

#[test]
fn leftovers_get_term_then_kill() {
    let mut case = case(|_| {});
    assert_eq!(
        case.at(10, Input::Ended(Outcome::Exited(0), TreeState::Alive)),
        [Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::Leftovers(Leftovers::Kill))]
    );
    assert_eq!((case.policy.result(), case.deadline()), (None, Some(15)));
    assert_eq!(case.at(11, Input::TreeChanged(TreeState::Alive)), [Action::SignalTree(Signal::SIGTERM)]);
    assert_eq!(case.at(15, Input::Clock), [Action::KillAfterTerm, Action::Log(Notice::KillGraceExpired)]);
    assert_eq!(case.at(15, Input::TreeChanged(TreeState::Alive)), [Action::KillAfterTerm], "newcomers have a second");
    assert_eq!(case.at(15, Input::Clock), []);
    assert_eq!(case.policy.result(), None);
    for second in 16..19 {
        assert_eq!(case.at(second, Input::Clock), [Action::SignalTree(Signal::SIGKILL)]);
        assert_eq!(
            case.at(second, Input::TreeChanged(TreeState::Alive)),
            [Action::SignalTree(Signal::SIGKILL)],
            "but no other"
        );
    }
    assert_eq!(case.at(19, Input::TreeChanged(TreeState::Empty)), []);
    assert_eq!(case.policy.result(), Some(Outcome::Exited(0)));
}

#[test]
fn no_limit_counts_for_leftovers_or_after_a_kill() {
    for limit in ["hard", "idle", "result"] {
        let of = |name| (limit == name).then_some(Duration::from_secs(60));
        let case = || {
            let mut case = case(|config| {
                (config.hard_limit, config.idle_limit, config.result_grace) = (of("hard"), of("idle"), of("result"));
            });
            case.at(0, FINE);
            case
        };
        let mut leaving = case();
        leaving.at(59, Input::Ended(Outcome::Exited(0), TreeState::Alive));
        assert_eq!(leaving.at(60, Input::Clock), [], "{limit}");
        leaving.at(61, Input::TreeChanged(TreeState::Empty));
        assert_eq!(leaving.policy.result(), Some(Outcome::Exited(0)));
        let mut killed = case();
        killed.term(58);
        killed.term(58);
        killed.at(59, Input::Clock);
        assert_eq!(killed.at(60, Input::Clock), [Action::SignalTree(Signal::SIGKILL)], "{limit}");
    }
}

#[test]
fn kept_leftovers_get_no_signal() {
    let mut case = case(|config| config.leftovers = Leftovers::Keep);
    case.term(1);
    assert_eq!(
        case.term(2),
        [Action::SignalChild(Signal::SIGTERM), Action::SignalChild(Signal::SIGKILL), Action::Log(Notice::SecondTerm)]
    );
    let kept = [Action::Log(Notice::Leftovers(Leftovers::Keep))];
    assert_eq!(case.at(3, Input::Ended(Outcome::Killed(9), TreeState::Alive)), kept);
    assert_eq!(case.policy.result(), Some(Outcome::Killed(9)));
}

#[test]
fn leftovers_that_kill_does_not_end_are_given_up() {
    for (kill_grace, patience) in [(2, 5), (5, 5), (20, 20)] {
        let mut case = case(|config| config.kill_grace = Some(Duration::from_secs(kill_grace)));
        case.at(1, Input::Ended(Outcome::Exited(0), TreeState::Alive));
        let killed = 1 + kill_grace;
        case.at(killed, Input::Clock);
        for second in killed + 1..killed + patience {
            assert_eq!(case.at(second, Input::Clock), [Action::SignalTree(Signal::SIGKILL)]);
        }
        assert_eq!(case.at(killed + patience, Input::Clock), [Action::Log(Notice::GivenUp)]);
        assert_eq!(case.policy.result(), Some(Outcome::Exited(0)));
    }
}

#[test]
fn what_a_killed_child_leaves_gets_kill() {
    for (seconds, kill) in [(3, Action::KillAfterTerm), (4, Action::SignalTree(Signal::SIGKILL))] {
        let mut case = case(|_| {});
        case.term(1);
        case.term(2);
        (3..=seconds).for_each(|second| drop(case.at(second, Input::Clock)));
        assert_eq!(case.at(seconds, Input::Ended(Outcome::Killed(9), TreeState::Alive)), [kill]);
    }
}

#[test]
fn term_ends_the_wait_for_the_unkillable() {
    for leftovers in [Leftovers::Kill, Leftovers::Keep] {
        let mut case = case(|config| {
            (config.hard_limit, config.kill_grace) = (None, Some(Duration::from_secs(600)));
            config.leftovers = leftovers;
        });
        case.term(1);
        case.at(301, Input::Clock);
        case.at(601, Input::Clock);
        case.at(602, Input::Clock);
        case.at(602, Input::Signal(Signal::SIGHUP, PROCESS));
        assert!(!case.at(604, Input::Clock).contains(&Action::Log(Notice::GivenUp)), "nobody has asked for that");
        case.term(604);
        assert_eq!(case.at(605, Input::Clock), [Action::Log(Notice::GivenUp)], "not even the child has ended");
        assert_eq!(case.policy.result(), Some(Outcome::Killed(9)));
    }
}

#[test]
fn ctrl_c_does_not_wait_for_a_terminal() {
    for (stopped_by, is_continued) in [(Signal::SIGTTIN, true), (Signal::SIGTTOU, true), (Signal::SIGSTOP, false)] {
        let mut case = case(|_| {});
        case.at(1, Input::Stopped(stopped_by));
        let actions = case.at(2, Input::Signal(Signal::SIGINT, PROCESS));
        assert_eq!(actions[0], Action::SignalChild(Signal::SIGINT));
        assert_eq!(actions.contains(&Action::SignalChild(Signal::SIGCONT)), is_continued, "{stopped_by}");
    }
}

#[test]
fn late_kill_is_told_when_it_is_sent() {
    let mut case = case(|_| {});
    case.term(1);
    let late = case.at(50, Input::Clock);
    assert_eq!(late, [Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::ChildStays)]);
    assert_eq!(case.at(51, Input::Clock), [Action::KillAfterTerm, Action::Log(Notice::KillGraceExpired)]);
}

#[test]
fn nobody_gets_kill_without_a_term_before_it() {
    let term_to_all = Action::SignalTree(Signal::SIGTERM);
    let kill = [Action::KillAfterTerm, Action::Log(Notice::KillGraceExpired)];
    let mut second = case(|_| {});
    second.term(1);
    assert_eq!(second.term(2)[1..], [term_to_all, Action::Log(Notice::SecondTerm)]);
    assert_eq!(second.at(3, Input::Clock), kill);
    let mut without_grace = case(|config| config.kill_grace = None);
    without_grace.term(1);
    assert!(without_grace.term(2).contains(&term_to_all));
    assert_eq!(without_grace.at(3, Input::Clock), kill);
    let mut impatient = case(|_| {});
    impatient.term(1);
    impatient.term(2);
    assert!(impatient.at(2, Input::Clock).is_empty());
    let mut late = case(|_| {});
    late.term(1);
    assert!(late.at(100, Input::Clock).contains(&term_to_all), "we were stopped meanwhile");
    assert_eq!(late.at(101, Input::Clock), kill);
    let mut brief = case(|config| config.kill_grace = Some(Duration::from_millis(300)));
    brief.term(1);
    brief.at(2, Input::Clock);
    brief.at(3, Input::Clock);
    let last = brief.start + Duration::from_millis(3300);
    assert_eq!(brief.policy.next_deadline(), Some(last), "newcomers have no more than the others");
    let mut kept = case(|config| config.leftovers = Leftovers::Keep);
    kept.at(1, Input::Signal(Signal::SIGHUP, PROCESS));
    assert_eq!(kept.at(4, Input::Clock), [Action::SignalChild(Signal::SIGTERM), Action::Log(Notice::ChildStays)]);
    assert_eq!(kept.at(6, Input::Clock)[0], Action::SignalChild(Signal::SIGKILL));
    for first in [Signal::SIGHUP, Signal::SIGTERM] {
        let mut frozen = case(|config| config.leftovers = Leftovers::Keep);
        frozen.at(1, Input::Signal(first, PROCESS));
        assert!(!frozen.at(70, Input::Clock).contains(&Action::SignalChild(Signal::SIGKILL)), "it was frozen as well");
        assert_eq!((frozen.deadline(), frozen.at(71, Input::Clock)[0]), (Some(71), Action::SignalChild(Signal::SIGKILL)));
    }
}

#[test]
fn new_turn_ends_the_result_grace() {
    let mut case = case(|config| config.hard_limit = None);
    case.at(1, FINE);
    assert_eq!(case.at(2, Input::Frame(FrameEvent::TurnStarted)), []);
    case.at(3, Input::Frame(FrameEvent::Other));
    case.at(4, Input::Frame(FrameEvent::OpenTasks(0)));
    assert_eq!(case.deadline(), None, "it works");
    case.at(100, BAD);
    assert_eq!(case.deadline(), Some(130));
}

#[test]
fn result_grace_begins_at_the_end_of_stdin() {
    let mut case = case(|config| (config.hard_limit, config.streams_input) = (None, true));
    case.at(1, FINE);
    case.at(2, Input::Frame(FrameEvent::Other));
    assert_eq!(case.deadline(), None, "the next message may come");
    case.at(100, Input::StdinEnded);
    assert_eq!(case.deadline(), Some(130));
}

#[test]
fn stopped_time_is_no_idle_time() {
    let idle = |config: &mut PolicyConfig| (config.idle_limit, config.hard_limit) = (Some(Duration::from_secs(10)), None);
    let mut child = case(idle);
    child.at(4, Input::Stopped(Signal::SIGSTOP));
    assert_eq!(child.deadline(), None);
    child.at(50, Input::Continued);
    assert_eq!(child.deadline(), Some(60));
    let mut ours = case(idle);
    ours.at(50, Input::Signal(Signal::SIGCONT, PROCESS));
    assert_eq!(ours.deadline(), Some(60));
    let mut waits_for_terminal = case(idle);
    waits_for_terminal.at(4, Input::Stopped(Signal::SIGTTIN));
    assert_eq!(waits_for_terminal.deadline(), Some(10), "nobody continues it");
}

#[test]
fn late_clock_lets_the_relay_catch_up_once() {
    for result in [false, true] {
        let mut case = case(|config| {
            config.idle_limit = (!result).then_some(Duration::from_secs(10));
            config.result_grace = Some(Duration::from_secs(10));
        });
        if result {
            case.at(0, FINE);
        }
        assert_eq!(case.at(20, Input::Clock), []);
        assert_eq!(case.deadline(), Some(21));
        let mut silent = case.policy.clone();
        let at = |second| case.start + Duration::from_secs(second);
        silent.decide(Input::LastOutput(at(5)), at(20)); // older than what counts
        let limit = if result { Outcome::HungAfterResult { is_error: false } } else { Outcome::IdleLimit };
        let actions = silent.decide(Input::Clock, at(30));
        assert!(actions.contains(&Action::Log(Notice::LimitExpired(limit))));
        let arrived = if result { FINE } else { Input::LastOutput(at(20)) };
        case.at(20, arrived);
        assert_eq!(case.deadline(), Some(30));
        assert_eq!(case.at(40, Input::Clock), [], "once for each");
    }
}

#[test]
fn stopped_child_gets_cont_with_its_term() {
    let mut stopped_first = case(|_| {});
    stopped_first.at(1, Input::Stopped(Signal::SIGSTOP));
    assert_eq!(stopped_first.term(2), [Action::SignalChild(Signal::SIGTERM), Action::SignalChild(Signal::SIGCONT)]);
    let mut term_first = case(|_| {});
    assert_eq!(term_first.term(1), [Action::SignalChild(Signal::SIGTERM)]);
    assert_eq!(term_first.at(2, Input::Stopped(Signal::SIGSTOP)), [Action::SignalChild(Signal::SIGCONT)]);
    let mut limit = case(|_| {});
    limit.at(1, Input::Stopped(Signal::SIGSTOP));
    assert!(limit.at(60, Input::Clock).contains(&Action::SignalChild(Signal::SIGCONT)));
    let mut resumed = case(|_| {});
    resumed.at(1, Input::Stopped(Signal::SIGSTOP));
    resumed.at(2, Input::Continued);
    assert_eq!(resumed.term(3), [Action::SignalChild(Signal::SIGTERM)]);
}

#[test]
fn own_group_gets_all_shared_one_only_sent() {
    for signal in FORWARDED.iter() {
        for sender in [TERMINAL, PROCESS] {
            let actions = case(|_| {}).at(1, Input::Signal(signal, sender));
            assert_eq!(actions, [Action::SignalChild(signal)], "own group, {signal}, {sender:?}");
            let actions = case(|config| config.group = Group::Shared).at(1, Input::Signal(signal, sender));
            let forwarded = sender == PROCESS && signal != Signal::SIGCONT;
            assert_eq!(actions.contains(&Action::SignalChild(signal)), forwarded, "shared group, {signal}, {sender:?}");
        }
    }
}

#[test]
fn shared_group_gets_cont_only_if_stopped() {
    let mut case = case(|config| config.group = Group::Shared);
    case.at(1, Input::Stopped(Signal::SIGSTOP));
    assert_eq!(case.at(2, Input::Signal(Signal::SIGCONT, PROCESS)), [Action::SignalChild(Signal::SIGCONT)]);
}

#[test]
fn termination_requests_start_the_kill_grace() {
    for group in [Group::Own, Group::Shared] {
        for sender in [TERMINAL, PROCESS] {
            for signal in FORWARDED.iter() {
                let mut case = case(|config| config.group = group);
                case.at(1, Input::Signal(signal, sender));
                let quit_key = signal == Signal::SIGQUIT && sender == TERMINAL && group == Group::Shared;
                let started = case.deadline() == Some(3);
                assert_eq!(started, is_termination_request(signal) && !quit_key, "{group:?}, {signal}, {sender:?}");
            }
        }
    }
}

#[test]
fn other_signals_do_nothing() {
    for signal in Signal::iterator().filter(|signal| !FORWARDED.contains(*signal)) {
        if !matches!(signal, Signal::SIGUSR1 | Signal::SIGTSTP) {
            assert_eq!(case(|_| {}).at(1, Input::Signal(signal, PROCESS)), [], "{signal}");
        }
    }
}

#[test]
fn ignored_signals_are_only_forwarded() {
    let mut case = case(|config| config.ignored.add(Signal::SIGHUP));
    assert_eq!(case.at(1, Input::Signal(Signal::SIGHUP, TERMINAL)), [Action::SignalChild(Signal::SIGHUP)]);
    assert_eq!(case.deadline(), Some(60));
}

#[test]
fn only_a_second_term_escalates() {
    for first in FORWARDED.iter() {
        for second in FORWARDED.iter() {
            let mut case = case(|_| {});
            case.at(1, Input::Signal(first, PROCESS));
            let actions = case.at(2, Input::Signal(second, PROCESS));
            let twice = first == Signal::SIGTERM && second == Signal::SIGTERM;
            assert_eq!(actions.contains(&Action::Log(Notice::SecondTerm)), twice, "{first}, {second}");
        }
    }
    let mut limit = case(|_| {});
    limit.at(60, Input::Clock);
    assert_eq!(limit.term(61), [Action::SignalChild(Signal::SIGTERM)], "the first that a process has sent");
    assert!(limit.term(62).contains(&Action::Log(Notice::SecondTerm)));
}

#[test]
fn term_after_the_child_s_end_leaves_a_second() {
    for kill_grace in [None, Some(GRACE), Some(Duration::from_secs(3600))] {
        let mut case = case(|config| config.kill_grace = kill_grace);
        case.at(1, Input::Ended(Outcome::Exited(0), TreeState::Alive));
        assert_eq!(case.deadline(), kill_grace.map(|grace| 1 + grace.as_secs()), "nobody has asked for that");
        for (signal, source) in [(Signal::SIGINT, SignalSource::Kernel), (Signal::SIGHUP, PROCESS), (Signal::SIGQUIT, PROCESS)]
        {
            let mut hurried = Case { policy: case.policy.clone(), start: case.start };
            assert_eq!((hurried.at(2, Input::Signal(signal, source)), hurried.deadline()), (vec![], Some(3)), "{signal}");
        }
        assert_eq!((case.term(2), case.deadline()), (vec![], Some(3)));
        let mut patient = Case { policy: case.policy.clone(), start: case.start };
        assert_eq!(patient.at(3, Input::Clock), [Action::KillAfterTerm, Action::Log(Notice::KillGraceExpired)]);
        assert_eq!(case.term(2), [Action::KillAfterTerm, Action::Log(Notice::SecondTerm)]);
        assert_eq!(case.at(2, Input::Signal(Signal::SIGINT, PROCESS)), [], "its pid is that of a zombie");
        assert_eq!(case.term(2), [], "newcomers have their second");
        assert_eq!(case.at(3, Input::Clock), [Action::SignalTree(Signal::SIGKILL)]);
        assert_eq!(case.at(4, Input::Clock), [Action::Log(Notice::GivenUp)]);
    }
    let mut late = case(|_| {});
    late.at(1, Input::Ended(Outcome::Exited(0), TreeState::Alive));
    late.at(6, Input::Clock);
    late.at(7, Input::Clock);
    late.term(7);
    assert_eq!(
        (late.at(8, Input::Clock), late.policy.result()),
        (vec![Action::Log(Notice::GivenUp)], Some(Outcome::Exited(0)))
    );
}

#[test]
fn second_of_a_second_term_does_not_begin_anew() {
    let mut case = case(|_| {});
    case.term(10);
    case.term(11);
    assert_eq!(case.deadline(), Some(12));
    let term = [Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::Leftovers(Leftovers::Kill))];
    let later = case.start + Duration::from_millis(11_500);
    assert_eq!(case.policy.decide(Input::Ended(Outcome::Exited(0), TreeState::Alive), later), term);
    assert_eq!(case.policy.next_deadline(), Some(case.start + Duration::from_secs(12)));
}

#[test]
fn rest_of_the_tree_follows_the_child_soon() {
    for (kill_grace, delay) in [(None, 2500), (Some(3_600_000), 2500), (Some(5_000), 2500), (Some(800), 400)] {
        let kill_grace = kill_grace.map(Duration::from_millis);
        for hard_limit in [None, Some(Duration::from_secs(60))] {
            let mut case = case(|config| (config.kill_grace, config.hard_limit) = (kill_grace, hard_limit));
            let term = if hard_limit.is_some() { case.at(60, Input::Clock) } else { case.term(60) };
            assert_eq!(term[0], Action::SignalChild(Signal::SIGTERM));
            let rest_at = case.start + Duration::from_millis(60_000 + delay);
            assert_eq!(case.policy.next_deadline(), Some(rest_at));
            let rest = [Action::SignalTree(Signal::SIGTERM), Action::Log(Notice::ChildStays)];
            assert_eq!(case.policy.decide(Input::Clock, rest_at), rest);
            assert_eq!(case.policy.next_deadline(), kill_grace.map(|grace| case.start + Duration::from_secs(60) + grace));
        }
    }
    let mut hung_up = case(|config| config.kill_grace = None);
    hung_up.at(1, Input::Signal(Signal::SIGHUP, PROCESS));
    assert_eq!(hung_up.deadline(), Some(60), "it may take a HUP for something else");
    hung_up.term(2);
    assert_eq!(hung_up.deadline(), Some(4));
}

#[test]
fn child_that_stops_again_is_continued_once() {
    let mut case = case(|_| {});
    case.at(1, Input::Stopped(Signal::SIGTTIN));
    assert_eq!(case.term(2)[1], Action::SignalChild(Signal::SIGCONT));
    for signal in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGSTOP] {
        assert_eq!(case.at(2, Input::Stopped(signal)), [Action::SignalChild(Signal::SIGCONT)]);
        case.at(2, Input::Continued);
        assert_eq!(case.at(2, Input::Stopped(signal)), []);
    }
}

#[test]
fn stop_and_report_work_in_every_phase() {
    let states: [&[Input]; 4] = [
        &[],
        &[Input::Signal(Signal::SIGTERM, PROCESS)],
        &[Input::Ended(Outcome::Exited(0), TreeState::Alive)],
        &[Input::Ended(Outcome::Exited(0), TreeState::Alive), Input::Signal(Signal::SIGTERM, PROCESS)],
    ];
    for ignored in [false, true] {
        for (number, inputs) in states.into_iter().enumerate() {
            let mut case = case(|config| {
                if ignored {
                    config.ignored.add(Signal::SIGTSTP);
                }
            });
            for &input in inputs {
                case.at(1, input);
            }
            assert_eq!(case.at(2, Input::Signal(Signal::SIGUSR1, PROCESS)), [Action::Report]);
            let stop = case.at(2, Input::Signal(Signal::SIGTSTP, PROCESS));
            assert_eq!(stop.contains(&Action::Stop(PROCESS)), !ignored);
            assert_eq!(stop.contains(&Action::SignalChild(Signal::SIGTSTP)), number < 2, "only a child that is there");
        }
    }
}

#[test]
fn child_in_our_group_that_stops_itself_stops_us() {
    for (group, signal, stops) in
        [(Group::Shared, Signal::SIGTSTP, true), (Group::Shared, Signal::SIGSTOP, false), (Group::Own, Signal::SIGTSTP, false)]
    {
        let mut case = case(|config| config.group = group);
        assert_eq!(case.at(1, Input::Stopped(signal)).contains(&Action::Stop(TERMINAL)), stops, "{group:?} {signal}");
        assert_eq!(case.at(2, Input::Signal(Signal::SIGCONT, PROCESS)), [Action::SignalChild(Signal::SIGCONT)]);
    }
    for (hard_limit, leftovers) in [(None, Leftovers::Kill), (Some(GRACE), Leftovers::Keep)] {
        let mut attended = case(|config| {
            (config.group, config.hard_limit, config.leftovers) = (Group::Shared, hard_limit, leftovers);
        });
        assert_eq!(attended.at(1, Input::Stopped(Signal::SIGSTOP)), [Action::Stop(TERMINAL)]);
    }
}

/// All sequences of four inputs: a child is never signalled after its end, kept leftovers never, and no deadline stays in the past
/// after a clock input.
#[test]
fn invariants_hold_in_any_order_of_inputs() {
    let of_each_kind = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGCONT];
    let inputs: Vec<Input> = of_each_kind
        .into_iter()
        .map(|signal| Input::Signal(signal, PROCESS))
        .chain([
            Input::Signal(Signal::SIGINT, TERMINAL),
            FINE,
            Input::LastOutput(Instant::now()),
            Input::Stopped(Signal::SIGTSTP),
            Input::Continued,
            Input::Ended(Outcome::Exited(7), TreeState::Empty),
            Input::Ended(Outcome::Exited(7), TreeState::Alive),
            Input::TreeChanged(TreeState::Alive),
            Input::TreeChanged(TreeState::Empty),
            Input::LockLost,
            Input::Frame(FrameEvent::TurnStarted),
            Input::Clock,
        ])
        .collect();
    let count = inputs.len();
    for leftovers in [Leftovers::Kill, Leftovers::Keep] {
        for group in [Group::Own, Group::Shared] {
            for order in 0..count.pow(4) {
                let mut case = case(|config| (config.leftovers, config.group) = (leftovers, group));
                let mut ended = false;
                let sequence: Vec<_> = (0..4).map(|place| inputs[order / count.pow(place) % count]).collect();
                for (step, &input) in sequence.iter().enumerate() {
                    let about_the_end = matches!(input, Input::Ended(..));
                    if (about_the_end && ended) || case.policy.result().is_some() {
                        break; // cannot happen: a child ends once, and a run that is over gets no input
                    }
                    ended |= about_the_end;
                    let now = case.start + Duration::from_secs(70 * (step as u64 + 1));
                    let mut actions = case.policy.decide(input, now);
                    actions.extend(case.policy.decide(Input::Clock, now));
                    if ended {
                        assert!(!actions.iter().any(|action| matches!(action, Action::SignalChild(_))), "{sequence:?}");
                    }
                    if leftovers == Leftovers::Keep {
                        assert!(!actions.iter().any(|action| matches!(action, Action::SignalTree(_))), "{sequence:?}");
                    }
                    assert!(case.policy.next_deadline().is_none_or(|deadline| deadline > now), "{sequence:?}");
                }
            }
        }
    }
}
