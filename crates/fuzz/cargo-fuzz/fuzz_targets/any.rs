//! The target that `LOCKSTEP_FUZZ_TARGET` names. With `LOCKSTEP_FUZZ_SEEDS` it writes the seeds of all targets into that
//! directory, one directory each, prints their names, and ends.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lockstep_fuzz::mutate::mutate;
use lockstep_fuzz::{Counting, Random, Target, find, targets};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("LOCKSTEP_FUZZ_TARGET").expect("LOCKSTEP_FUZZ_TARGET names a target");
    find(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});

fn write_seeds(directory: &Path) -> std::io::Result<()> {
    for target in targets() {
        let own = directory.join(target.name);
        std::fs::create_dir_all(&own)?;
        for (n, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(own.join(format!("seed-{n}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}

fuzz_target!(
    init: {
        if let Some(directory) = std::env::var_os("LOCKSTEP_FUZZ_SEEDS") {
            write_seeds(Path::new(&directory)).expect("the seeds are written");
            std::process::exit(0);
        }
    },
    |bytes: &[u8]| {
        TARGET.check(bytes);
    }
);

// Half of the changes are libFuzzer's own, half know what a field is.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed & 1 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut bytes = data[..size].to_vec();
    let other = bytes.clone();
    mutate(&mut bytes, &other, &mut Random::new(seed.into()), max_size);
    data[..bytes.len()].copy_from_slice(&bytes);
    bytes.len()
});
