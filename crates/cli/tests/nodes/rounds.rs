//! Random faults, round after round.

use lockstep_testkit::rounds::rounds;

use crate::binary;

/// Rounds where nobody asks for more.
const ROUNDS: usize = 6;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

async fn play(seed: u64) {
    let count = usize::try_from(number("LOCKSTEP_ROUNDS", ROUNDS as u64)).unwrap();
    let report = rounds(binary(), seed, count).await;
    println!("{report:?}");
    assert!(report.acknowledged > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_random_faults_lose_repeat_and_move_nothing() {
    play(number("LOCKSTEP_SEED", 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_random_faults_lose_repeat_and_move_nothing_for_devices_that_never_give_up() {
    play(number("LOCKSTEP_SEED", 1) + 1).await;
}
