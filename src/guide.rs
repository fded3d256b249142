//! The guide for users: chapters that the repository, this documentation and the program itself show.

macro_rules! chapters {
    ($($name:ident $topic:literal)*) => {
        /// Text of each chapter by its topic, in reading order.
        pub const TOPICS: &[(&str, &str)] = &[$(($topic, include_str!(concat!("guide/", $topic, ".md")))),*];
        $(#[doc = include_str!(concat!("guide/", $topic, ".md"))] pub mod $name {})*
    };
}

chapters! {
    modes "modes"
    slots "slots"
    watchdog "watchdog"
    operations "operations"
    options "options"
    logs "logs"
    deployment "deployment"
    hosts "hosts"
    troubleshooting "troubleshooting"
    coming_from "coming-from"
    security "security"
    limits "limits"
}
