//! Limits of rules. They are part of what `apply` computes: a change of one is a new version of its rules.

/// Longest document in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 32 << 10;
/// Longest bundle (document and files) in bytes.
pub const BUNDLE_BYTES_MAX: usize = lockstep_types::registry::RULES_BYTES_MAX;
/// Files beside the document.
pub const FILES_MAX: usize = 4;
/// Longest name of a file in bytes.
pub const FILE_NAME_BYTES_MAX: usize = 128;
/// Expressions of a document, all stages together.
pub const EXPRESSIONS_MAX: usize = 64;
/// Longest expression in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 1_024;
/// Brackets within brackets, and calls within calls, of an expression.
pub const EXPRESSION_DEPTH_MAX: usize = 32;
/// Longest reason in bytes.
pub const REASON_BYTES_MAX: usize = 48;
/// Longest name of a reduced value in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Values of a reduced payload.
pub const REDUCED_MAX: usize = 32;
/// Largest value that a reduction keeps (`last`, `merge`), as JSON, in bytes.
pub const REDUCED_BYTES_MAX: usize = 4 << 10;
/// Longest name of a group in bytes.
pub const GROUP_NAME_BYTES_MAX: usize = 128;
/// Most messages of a group.
pub const GROUP_MESSAGES_MAX: u64 = lockstep_types::task::GROUP_MESSAGES_MAX;
/// Most bytes of data of a group, but for its last message.
pub const GROUP_BYTES_MAX: u64 = lockstep_types::task::GROUP_BYTES_MAX;
/// Outputs that a document names.
pub const OUTPUTS_MAX: usize = 16;
/// Longest hold, age or window: 31 days.
pub const SPAN_MS_MAX: u64 = lockstep_types::task::GROUP_AGE_MS_MAX;

/// Values in one message, those within others counted.
pub const ELEMENTS_MAX: usize = 8_192;
/// Lists and objects within each other in one message.
pub const NESTING_MAX: usize = 64;

/// Steps of all expressions for one message. One is a node that is evaluated, or 32 bytes of text that are looked at.
pub const EXPRESSION_FUEL: u64 = 20_000;
/// Fuel that a step of an expression takes: it is some 30 ns at worst.
pub const FUEL_FOR_STEP: u64 = 2;
/// Fuel of the schema for one message. One is a part of the schema against one value.
pub const SCHEMA_FUEL: u64 = 200_000;
/// Largest schema in bytes.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Parts of a schema, those behind references counted as often as they are referred to.
pub const SCHEMA_PARTS_MAX: usize = 2_048;
/// Size of the automaton of a pattern in bytes.
pub const PATTERN_BYTES_MAX: usize = 256 << 10;
/// The same, of all patterns of a bundle.
pub const PATTERNS_BYTES_MAX: usize = 1 << 20;
/// Memory that a matcher may take for what it has met of a pattern's automaton: more than all of it.
pub const PATTERN_CACHE_BYTES: usize = 4 * PATTERN_BYTES_MAX;
/// Bytes of text that one fuel pays for where a pattern meets them: a matcher that begins anew again and again takes some 8
/// ns for a byte.
pub const PATTERN_BYTES_FOR_FUEL: u64 = 2;
/// Instructions of a module that one fuel of its project pays for: they are faster than steps of an expression.
pub const INSTRUCTIONS_FOR_FUEL: u64 = 8;
/// Patterns of a bundle, those of its schema and of its expressions: each takes time and memory when rules are made.
pub const PATTERNS_MAX: usize = 32;

/// Largest WebAssembly module in bytes.
pub const MODULE_BYTES_MAX: usize = 256 << 10;
/// Fuel of a module for one message where the document says nothing.
pub const FUEL_DEFAULT: u64 = 200_000;
/// Most fuel that a document can give it.
pub const FUEL_MAX: u64 = 2_000_000;
/// Memory of a module in bytes.
pub const MODULE_MEMORY_BYTES_MAX: usize = 2 << 20;
/// Elements of its table.
pub const MODULE_TABLE_MAX: usize = 1_024;
/// Functions of a module that call each other.
pub const MODULE_RECURSION_MAX: usize = 256;
/// Flags of one message.
pub const FLAGS_MAX: usize = 8;
