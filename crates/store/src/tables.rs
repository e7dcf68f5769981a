//! The tables of a store as RocksDB has them: a column family each, tuned for how it is used.

use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, Options};

use crate::forget::Forgetting;
use crate::rocks::Kind;
use crate::sizes::Sizes;
use crate::storage::Table;

/// Write buffers of one table.
const WRITE_BUFFERS_MAX: i32 = 3;
/// A file of [`Table::Open`] is compacted when so many of so many keys one behind the other are deletions. Each of these is
/// passed by whoever reads the table from end to end, which a node does when it starts. There are few keys that are not, so
/// it costs little.
const DELETIONS: (usize, usize) = (64, 128);
/// Files that [`Table::Open`] has before they are merged.
const OPEN_FILES_TO_MERGE: i32 = 2;

pub(crate) fn table_name(table: Table) -> &'static str {
    match table {
        Table::Log => "log",
        Table::Chain => "chain",
        Table::Index => "index",
        Table::Open => "open",
    }
}

fn table_options(table: Table, cache: &Cache, forgetting: &Forgetting, sizes: Sizes) -> Options {
    let mut options = Options::default();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if table == Table::Index {
        // Most look-ups are for contents that were never seen: ten bits answer 99 % of them without a read.
        blocks.set_bloom_filter(10.0, false);
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_compression_type(DBCompressionType::None);
        let forgetting = forgetting.clone();
        options.set_compaction_filter("forgotten", move |_, key, value| forgetting.decision(key, value));
    } else {
        blocks.set_block_size(16 << 10);
        options.set_compression_type(DBCompressionType::Lz4);
    }
    if table == Table::Open {
        let (deletions, keys) = DELETIONS;
        options.add_compact_on_deletion_collector_factory(keys, deletions, 0.0);
        options.set_level_zero_file_num_compaction_trigger(OPEN_FILES_TO_MERGE);
    }
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(usize::try_from(sizes.write_buffer_bytes).unwrap_or(usize::MAX));
    options.set_target_file_size_base(sizes.table_file_bytes);
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX);
    options.set_paranoid_checks(true);
    options
}

pub(crate) fn tables(kind: Kind) -> &'static [Table] {
    match kind {
        Kind::Log => &[Table::Log],
        Kind::State => &[Table::Chain, Table::Index, Table::Open],
    }
}

pub(crate) fn families(
    kind: Kind,
    cache: &Cache,
    forgetting: &Forgetting,
    sizes: Sizes,
) -> Vec<ColumnFamilyDescriptor> {
    let family = |t: &Table| ColumnFamilyDescriptor::new(table_name(*t), table_options(*t, cache, forgetting, sizes));
    tables(kind).iter().map(family).collect()
}
