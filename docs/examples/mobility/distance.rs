//! A module for the rules of a project: refuses a place that the vehicle cannot have reached since its last message.
//!
//!     rustc --edition 2021 --target wasm32-unknown-unknown --crate-type cdylib -C opt-level=s -C panic=abort \
//!         -C link-arg=-zstack-size=16384 -o distance.wasm distance.rs
//!
//! It needs no allocator and no library. `check` is called once for each message, on an instance of its own.
#![no_std]

#[link(wasm_import_module = "lockstep")]
extern "C" {
    /// Writes the number at a path of the message (`of` = 0) or of the last accepted one (1), times ten to the power of
    /// `decimals`; says whether there is one.
    fn number(of: i32, path: *const u8, length: usize, decimals: i32, out: *mut i64) -> i32;
    fn reason(text: *const u8, length: usize);
    fn flag(text: *const u8, length: usize);
}

const ACCEPT: i32 = 0;
const REFUSE: i32 = 1;

/// Metres a second that no vehicle of ours goes.
const SPEED_MAX: f64 = 90.0;
/// Metres a second that are worth a mark.
const SPEED_MARKED: f64 = 50.0;
/// Metres of a degree of latitude.
const DEGREE_M: f64 = 111_195.08;

fn get(of: i32, path: &str, decimals: i32) -> Option<i64> {
    let mut found = 0;
    let is_there = unsafe { number(of, path.as_ptr(), path.len(), decimals, &mut found) };
    (is_there == 1).then_some(found)
}

/// A place in degrees.
fn place(of: i32) -> Option<(f64, f64)> {
    let degrees = |path| get(of, path, 7).map(|fixed| fixed as f64 / 1e7);
    Some((degrees("lat")?, degrees("lon")?))
}

/// The cosine, near enough for a distance: an error below one in ten thousand.
fn cosine(degrees: f64) -> f64 {
    let x = degrees * 0.017_453_292_519_943_295;
    let x2 = x * x;
    1.0 - x2 / 2.0 * (1.0 - x2 / 12.0 * (1.0 - x2 / 30.0 * (1.0 - x2 / 56.0)))
}

/// The square of the distance in metres, as on a plane: right for the seconds between two messages.
fn distance_squared(a: (f64, f64), b: (f64, f64)) -> f64 {
    let mut east = b.1 - a.1;
    if east > 180.0 {
        east -= 360.0;
    }
    if east < -180.0 {
        east += 360.0;
    }
    let (north, east) = ((b.0 - a.0) * DEGREE_M, east * DEGREE_M * cosine((a.0 + b.0) / 2.0));
    north * north + east * east
}

#[no_mangle]
pub extern "C" fn check() -> i32 {
    let (here, before, now, then) = match (place(0), place(1), get(0, "ts", 0), get(1, "ts", 0)) {
        (Some(here), Some(before), Some(now), Some(then)) => (here, before, now, then),
        // Its first message, or not what the expressions have checked.
        _ => return ACCEPT,
    };
    let seconds = (now - then) as f64 / 1000.0;
    let squared = distance_squared(here, before);
    let beyond = |speed: f64| squared > (speed * seconds) * (speed * seconds);
    if beyond(SPEED_MAX) {
        let word = "too_fast";
        unsafe { reason(word.as_ptr(), word.len()) };
        return REFUSE;
    }
    if beyond(SPEED_MARKED) {
        let word = "fast";
        unsafe { flag(word.as_ptr(), word.len()) };
    }
    ACCEPT
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
