//! Panics of nodes: none may panic, whatever happens.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Collects this thread's panics until [`take`], instead of printing them.
pub(super) fn collect() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_ours = SEEN.with_borrow_mut(|seen| seen.as_mut().map(|seen| seen.push(panic.to_string())).is_some());
            if !is_ours {
                before(panic);
            }
        }));
    });
    SEEN.set(Some(Vec::new()));
}

/// What was collected.
pub(super) fn take() -> Vec<String> {
    SEEN.take().unwrap_or_default()
}
