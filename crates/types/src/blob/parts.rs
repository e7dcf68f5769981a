//! How the tasks of a batch are cut into blobs.

/// Most tasks in a blob.
pub const PART_TASKS_MAX: usize = 4_096;

/// Cuts the tasks of a batch, given the encoded bytes of each ([`crate::blob::BlobTask::encoded_bytes`]) and of what is
/// in every blob beside them, into parts of at most `part_bytes_max` bytes: each takes tasks in order for as long as
/// they fit. A task that does not fit with anything is a part by itself. Returns how many tasks each part has.
pub fn cut(frame_bytes: usize, tasks: impl IntoIterator<Item = usize>, part_bytes_max: usize) -> Vec<usize> {
    let (mut parts, mut count, mut bytes) = (Vec::new(), 0, frame_bytes);
    for task in tasks {
        let full = count == PART_TASKS_MAX || bytes.saturating_add(task) > part_bytes_max;
        if full && count > 0 {
            parts.push(std::mem::take(&mut count));
            bytes = frame_bytes;
        }
        count += 1;
        bytes = bytes.saturating_add(task);
    }
    if count > 0 {
        parts.push(count);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_filled_in_order_and_a_large_task_is_alone() {
        assert_eq!(cut(10, [30, 30, 30], 100), [3]);
        assert_eq!(cut(10, [30, 30, 31], 100), [2, 1]);
        assert_eq!(cut(10, [500, 30, 500, 30, 30], 100), [1, 1, 1, 2]);
        assert_eq!(cut(200, [1, 1], 100), [1, 1]);
        assert_eq!(cut(10, vec![0; PART_TASKS_MAX + 1], 100), [PART_TASKS_MAX, 1]);
        assert!(cut(10, [], 100).is_empty());
    }
}
