//! A stand-in for claude's token endpoint and its API, on loopback. It rotates refresh tokens as the real one does: each is good
//! for one refresh, and whoever sends a used one gets `invalid_grant`. It counts everything.
//!
//!     oauth_stand_in [--refresh-takes SECONDS] [--answer-takes SECONDS] [--life SECONDS] [--together N]
//!
//! With --together, a question is answered only once N have come, or half a minute later: who waits for another one's end before
//! it asks is found out, however slow the machine is.
//!
//! It prints `listening PORT`, serves until its stdin is closed, and then prints what it has counted, as JSON. GET /counts prints
//! the same in between. The first refresh token is `rt-0`, and the first access token, `at-0`, has expired.
//!
//! It speaks as little HTTP as that takes: one request a connection, a thread for each, so that none waits for another's answer
//! (tiny_http lets some, when a dozen connect at once).

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a test says what is wrong by ending")]

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Durations of the stand-in.
struct Times {
    refresh: Duration,
    answer: Duration,
    life: Duration,
    /// Number of questions that are answered at once.
    together: u32,
}

#[derive(Default)]
struct Counts {
    /// Refreshes that were asked for.
    posts: u32,
    /// Refreshes that sent a used token.
    invalid_grant: u32,
    /// Refreshes that were granted; also the number in the tokens that are good now.
    granted: u32,
    answered: u32,
    /// Questions with an access token that has expired.
    unauthorized: u32,
    being_answered: u32,
    /// The most agents whose question was being answered at one time.
    most_at_once: u32,
}

/// Longest wait of a question for others.
const TOGETHER: Duration = Duration::from_secs(30);

impl Counts {
    fn to_json(&self) -> Value {
        let Self { posts, invalid_grant, granted, answered, unauthorized, most_at_once, .. } = self;
        json!({"posts": posts, "invalid_grant": invalid_grant, "granted": granted, "answered": answered,
               "unauthorized": unauthorized, "most_at_once": most_at_once})
    }
}

fn main() {
    let seconds = |name, default| Duration::from_secs_f64(option(name, default));
    let times = Times {
        refresh: seconds("--refresh-takes", 0.0),
        answer: seconds("--answer-takes", 0.0),
        life: seconds("--life", 8.0 * 3600.0),
        together: option("--together", 1.0) as u32,
    };
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    println!("listening {port}");
    io::stdout().flush().expect("stdout");
    let counts = Arc::new(Mutex::new(Counts::default()));
    let (of_server, times) = (Arc::clone(&counts), Arc::new(times));
    thread::spawn(move || {
        for connection in server.incoming().flatten() {
            let (counts, times) = (Arc::clone(&of_server), Arc::clone(&times));
            // Whoever asked may be gone, killed for the sake of a test.
            thread::spawn(move || serve(connection, &counts, &times));
        }
    });
    let _ = io::stdin().read_to_end(&mut Vec::new());
    println!("{}", counts.lock().expect("counts").to_json());
}

fn option(name: &str, default: f64) -> f64 {
    let mut words = env::args().skip_while(|word| word != name).skip(1);
    words.next().map_or(default, |value| value.parse().expect("a number"))
}

fn serve(mut connection: TcpStream, counts: &Mutex<Counts>, times: &Times) -> io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let (mut length, mut token) = (0, String::new());
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or_default(),
            "authorization" => token = value.trim_start_matches("Bearer ").to_owned(),
            _ => {}
        }
    }
    let mut body = Vec::new();
    lines.take(length).read_to_end(&mut body)?;
    let (status, answer) = match first.split(' ').collect::<Vec<_>>()[..] {
        ["POST", "/v1/oauth/token", _] => refresh(&body, counts, times),
        ["POST", "/v1/messages", _] => answer(&token, counts, times),
        ["GET", "/counts", _] => (200, counts.lock().expect("counts").to_json()),
        _ => (404, json!({"error": "not here"})),
    };
    let answer = answer.to_string();
    write!(connection, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}", answer.len())
}

/// The token is used up as soon as it has come in, whether or not its answer arrives: that is what makes a kill expensive.
fn refresh(body: &[u8], counts: &Mutex<Counts>, times: &Times) -> (u16, Value) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let granted = {
        let mut counts = counts.lock().expect("counts");
        counts.posts += 1;
        if body["grant_type"] == "refresh_token" && body["refresh_token"] == format!("rt-{}", counts.granted) {
            counts.granted += 1;
            Some(counts.granted)
        } else {
            counts.invalid_grant += 1;
            None
        }
    };
    thread::sleep(times.refresh);
    match granted {
        Some(number) => {
            let tokens = json!({"access_token": format!("at-{number}"), "refresh_token": format!("rt-{number}"),
                                "expires_in": times.life.as_secs(), "token_type": "Bearer"});
            (200, tokens)
        }
        None => (400, json!({"error": "invalid_grant"})),
    }
}

fn answer(token: &str, counts: &Mutex<Counts>, times: &Times) -> (u16, Value) {
    {
        let mut counts = counts.lock().expect("counts");
        let number = token.strip_prefix("at-").and_then(|number| number.parse::<u32>().ok());
        if !number.is_some_and(|number| number > 0 && number <= counts.granted) {
            counts.unauthorized += 1;
            return (401, json!({"error": "authentication_error"}));
        }
        counts.being_answered += 1;
        counts.most_at_once = counts.most_at_once.max(counts.being_answered);
    }
    let began = Instant::now();
    while counts.lock().expect("counts").most_at_once < times.together && began.elapsed() < TOGETHER {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(times.answer);
    let mut counts = counts.lock().expect("counts");
    counts.being_answered -= 1;
    counts.answered += 1;
    (200, json!({"text": "hello"}))
}
