//! Questions for a task.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::TaskQuery;

fuzz_target!(|body: &[u8]| {
    if let Ok(query) = TaskQuery::parse(body) {
        let again = TaskQuery::from_parameters(&query.project_id.to_string(), &query.task_id_text);
        assert_eq!(again, Ok(query));
    }
});
