//! The entry point. C's `main`, not std's: std would set SIGPIPE to ignored and open closed descriptors before we can
//! see what claude is to inherit.
#![no_main]

#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    claude_run::main()
}
