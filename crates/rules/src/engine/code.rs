//! WebAssembly modules: run by an interpreter, in the specification's deterministic profile (one form of NaN), with fuel, and
//! with no imports but those here. A module begins anew for each message: it remembers nothing.
//!
//! It exports `memory` and `check: () -> i32`: 0 accepts the message, 1 refuses it, 2 drops it. docs/projects.md describes
//! the imports to who writes one.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::Address;
use serde_json::Value;
use wasmi::{
    Caller, CompilationMode, Config, EnforcedLimits, Engine, Error, Extern, Linker, Memory, Module, Store, StoreLimits,
    StoreLimitsBuilder,
};

use crate::document::is_word;
use crate::error::RulesError;
use crate::limits::{
    FLAGS_MAX, GROUP_NAME_BYTES_MAX, MODULE_BYTES_MAX, MODULE_MEMORY_BYTES_MAX, MODULE_RECURSION_MAX, MODULE_TABLE_MAX,
    REASON_BYTES_MAX,
};

const IMPORTS: &str = "lockstep";
/// Fuel for making an instance, and for each page of its memory.
const INSTANCE_FUEL: u64 = 2_000;
const PAGE_FUEL: u64 = 100;
/// Fuel of one call of an import, and bytes that one more pays for.
const CALL_FUEL: u64 = 100;
const BYTES_FOR_FUEL: u64 = 8;
const PATH_BYTES_MAX: usize = 256;
const DECIMALS_MAX: i32 = 18;

/// A module that can be run.
pub(crate) struct Code {
    engine: Engine,
    module: Module,
    linker: Linker<Host>,
    fuel: u64,
    start_fuel: u64,
}

/// What a module sees of the world, and says to it.
pub(crate) struct Host {
    pub message: Arc<Value>,
    pub data: Bytes,
    pub time: i64,
    pub device: Address,
    pub last: Option<(Arc<Value>, i64)>,
    pub said: Said,
    limits: StoreLimits,
}

/// What a module said beside its result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub reason: Option<String>,
    pub flags: Vec<String>,
    pub group: Option<String>,
}

/// What a module decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Accept,
    Refuse,
    Drop,
}

/// Why a module decided nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// It took too long.
    #[error("the module took more fuel than it has")]
    Fuel,
    /// It failed.
    #[error("the module failed: {0}")]
    Trap(String),
}

impl Code {
    pub fn compile(wasm: &[u8], fuel: u64) -> Result<Self, RulesError> {
        let wrong = |error: String| RulesError::Module(error);
        if wasm.len() > MODULE_BYTES_MAX {
            return Err(RulesError::TooLarge { what: "the module", bytes_max: MODULE_BYTES_MAX });
        }
        let mut config = Config::default();
        config
            .consume_fuel(true)
            .allow_start_fn(false)
            .ignore_custom_sections(true)
            .compilation_mode(CompilationMode::Eager)
            .enforced_limits(EnforcedLimits::strict())
            .set_max_recursion_depth(MODULE_RECURSION_MAX)
            .wasm_multi_memory(false)
            .wasm_tail_call(false)
            .wasm_custom_page_sizes(false);
        let engine = Engine::new(&config);
        let module = Module::new(&engine, wasm).map_err(|e| wrong(e.to_string()))?;
        let mut linker = Linker::new(&engine);
        define(&mut linker).map_err(|e| wrong(e.to_string()))?;
        let code = Self { engine, module, linker, fuel, start_fuel: 0 };
        let pages = code.try_out().map_err(|e| wrong(e.to_string()))?;
        Ok(Self { start_fuel: INSTANCE_FUEL + pages * PAGE_FUEL, ..code })
    }

    /// Makes an instance without running it, so that what can never run is refused at once. Pages of its memory.
    fn try_out(&self) -> Result<u64, Error> {
        let nothing = Host {
            message: Arc::new(Value::Null),
            data: Bytes::new(),
            time: 0,
            device: Address::ZERO,
            last: None,
            said: Said::default(),
            limits: limits(),
        };
        let mut store = self.store(nothing)?;
        let instance = self.linker.instantiate_and_start(&mut store, &self.module)?;
        instance.get_typed_func::<(), i32>(&store, "check")?;
        let memory = instance.get_memory(&store, "memory").ok_or_else(|| Error::new("it exports no memory"))?;
        Ok(memory.size(&store))
    }

    fn store(&self, host: Host) -> Result<Store<Host>, Error> {
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| &mut host.limits);
        store.set_fuel(self.fuel)?;
        Ok(store)
    }

    /// Runs it for one message; what it decided, what it said, and the fuel that it took.
    pub fn run(&self, host: Host) -> (Result<(Decision, Said), CodeError>, u64) {
        let mut store = match self.store(host) {
            Ok(store) => store,
            Err(error) => return (Err(CodeError::Trap(error.to_string())), self.start_fuel),
        };
        let result = self.linker.instantiate_and_start(&mut store, &self.module).and_then(|instance| {
            let check = instance.get_typed_func::<(), i32>(&store, "check")?;
            check.call(&mut store, ())
        });
        let left = store.get_fuel().unwrap_or_default();
        let taken = self.start_fuel + self.fuel.saturating_sub(left);
        let decided = match result {
            Ok(0) => Ok(Decision::Accept),
            Ok(1) => Ok(Decision::Refuse),
            Ok(2) => Ok(Decision::Drop),
            Ok(other) => Err(CodeError::Trap(format!("check gives 0, 1 or 2, not {other}"))),
            Err(error) if error.as_trap_code() == Some(wasmi::TrapCode::OutOfFuel) => Err(CodeError::Fuel),
            Err(error) => Err(CodeError::Trap(error.to_string().chars().take(100).collect())),
        };
        (decided.map(|decision| (decision, store.into_data().said)), taken)
    }
}

impl Host {
    pub fn new(message: Arc<Value>, data: Bytes, time: i64, device: Address, last: Option<(Arc<Value>, i64)>) -> Self {
        Self { message, data, time, device, last, said: Said::default(), limits: limits() }
    }

    /// The message, or the last accepted one.
    fn values(&self, of: i32) -> Option<&Value> {
        match of {
            0 => Some(&self.message),
            1 => self.last.as_ref().map(|last| &*last.0),
            _ => None,
        }
    }
}

fn limits() -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(MODULE_MEMORY_BYTES_MAX)
        .table_elements(MODULE_TABLE_MAX)
        .instances(1)
        .memories(1)
        .tables(4)
        .trap_on_grow_failure(true)
        .build()
}

/// A member of a member: `position.lat`.
fn find<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, name| match value {
        Value::Array(values) => values.get(name.parse::<usize>().ok()?),
        value => value.get(name),
    })
}

/// A number times ten to a power, to the nearest integer.
fn fixed(value: &Value, decimals: i32) -> Option<i64> {
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    let factor = 10_i64.checked_pow(u32::try_from(decimals).ok()?)?;
    if let Some(whole) = value.as_i64() {
        return whole.checked_mul(factor);
    }
    #[expect(clippy::cast_precision_loss, reason = "powers of ten up to 10^18 are exact in steps that do not matter")]
    let number = libm::round(value.as_f64()? * factor as f64);
    #[expect(clippy::cast_possible_truncation, reason = "it is in the range")]
    (-TWO_63..TWO_63).contains(&number).then_some(number as i64)
}

fn pay(caller: &mut Caller<'_, Host>, bytes: usize) -> Result<(), Error> {
    let cost = CALL_FUEL + bytes as u64 / BYTES_FOR_FUEL;
    match caller.get_fuel()?.checked_sub(cost) {
        Some(left) => caller.set_fuel(left),
        None => {
            caller.set_fuel(0)?;
            Err(Error::from(wasmi::TrapCode::OutOfFuel))
        }
    }
}

fn memory(caller: &Caller<'_, Host>) -> Result<Memory, Error> {
    caller.get_export("memory").and_then(Extern::into_memory).ok_or_else(|| Error::new("there is no memory"))
}

fn outside() -> Error {
    Error::new("an address outside of the memory")
}

/// Text that the module has.
fn read_text(caller: &Caller<'_, Host>, at: u32, length: u32, bytes_max: usize) -> Result<String, Error> {
    let (at, length) = (at as usize, length as usize);
    if length > bytes_max {
        return Err(Error::new("a text is too long"));
    }
    let memory = memory(caller)?;
    let bytes = at.checked_add(length).and_then(|end| memory.data(caller).get(at..end)).ok_or_else(outside)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::new("a text is not UTF-8"))
}

/// Writes as much as there is room for; says how much there is.
fn give(caller: &mut Caller<'_, Host>, bytes: &[u8], at: u32, room: u32) -> Result<i32, Error> {
    let count = bytes.len().min(room as usize);
    pay(caller, count)?;
    let memory = memory(caller)?;
    memory.write(&mut *caller, at as usize, &bytes[..count]).map_err(|_| outside())?;
    Ok(i32::try_from(bytes.len()).unwrap_or(i32::MAX))
}

fn define(linker: &mut Linker<Host>) -> Result<(), Error> {
    type Context<'a> = Caller<'a, Host>;
    // number(of, path, length, decimals, out) -> 0: there is none; 1: written, 8 bytes, little endian
    let number = |mut c: Context<'_>, of: i32, path: u32, length: u32, decimals: i32, out: u32| -> Result<i32, Error> {
        pay(&mut c, length as usize)?;
        let path = read_text(&c, path, length, PATH_BYTES_MAX)?;
        let found = c.data().values(of).and_then(|value| find(value, &path));
        let found = found.filter(|_| (0..=DECIMALS_MAX).contains(&decimals)).and_then(|value| fixed(value, decimals));
        let Some(number) = found else { return Ok(0) };
        give(&mut c, &number.to_le_bytes(), out, 8)?;
        Ok(1)
    };
    // text(of, path, length, out, room) -> bytes that there are, or -1
    let text = |mut c: Context<'_>, of: i32, path: u32, length: u32, out: u32, room: u32| -> Result<i32, Error> {
        pay(&mut c, length as usize)?;
        let path = read_text(&c, path, length, PATH_BYTES_MAX)?;
        let found = |c: &Context<'_>| {
            let text = c.data().values(of).and_then(|value| find(value, &path)).and_then(Value::as_str);
            text.map(|text| (text.len(), text.as_bytes()[..text.len().min(room as usize)].to_vec()))
        };
        let Some((length, text)) = found(&c) else { return Ok(-1) };
        give(&mut c, &text, out, room)?;
        Ok(i32::try_from(length).unwrap_or(i32::MAX))
    };
    // data(out, room) -> bytes that there are
    let data = |mut c: Context<'_>, out: u32, room: u32| -> Result<i32, Error> {
        let data = c.data().data.clone();
        give(&mut c, &data, out, room)
    };
    // device(out): 20 bytes
    let device = |mut c: Context<'_>, out: u32| -> Result<(), Error> {
        let device = c.data().device;
        give(&mut c, &device.0, out, 20).map(drop)
    };
    // time(of) -> milliseconds since 1970, of batches; -1 where there is no last message
    let time = |mut c: Context<'_>, of: i32| -> Result<i64, Error> {
        pay(&mut c, 0)?;
        let host = c.data();
        Ok(if of == 0 { host.time } else { host.last.as_ref().map_or(-1, |last| last.1) })
    };
    let word = |c: &mut Context<'_>, at: u32, length: u32| -> Result<String, Error> {
        pay(c, length as usize)?;
        let word = read_text(c, at, length, REASON_BYTES_MAX)?;
        if is_word(&word) { Ok(word) } else { Err(Error::new("a reason is a word of a to z, 0 to 9 and _")) }
    };
    linker.func_wrap(IMPORTS, "number", number)?;
    linker.func_wrap(IMPORTS, "text", text)?;
    linker.func_wrap(IMPORTS, "data", data)?;
    linker.func_wrap(IMPORTS, "device", device)?;
    linker.func_wrap(IMPORTS, "time", time)?;
    // reason(at, length): why it refuses or drops
    linker.func_wrap(IMPORTS, "reason", move |mut c: Context<'_>, at: u32, length: u32| -> Result<(), Error> {
        let word = word(&mut c, at, length)?;
        c.data_mut().said.reason = Some(word);
        Ok(())
    })?;
    // flag(at, length)
    linker.func_wrap(IMPORTS, "flag", move |mut c: Context<'_>, at: u32, length: u32| -> Result<(), Error> {
        let word = word(&mut c, at, length)?;
        let flags = &mut c.data_mut().said.flags;
        if flags.len() < FLAGS_MAX && !flags.contains(&word) {
            flags.push(word);
        }
        Ok(())
    })?;
    // group(at, length): the message's group, instead of the document's
    linker.func_wrap(IMPORTS, "group", move |mut c: Context<'_>, at: u32, length: u32| -> Result<(), Error> {
        pay(&mut c, length as usize)?;
        let name = read_text(&c, at, length, GROUP_NAME_BYTES_MAX)?;
        c.data_mut().said.group = Some(name);
        Ok(())
    })?;
    Ok(())
}
