//! Why rules cannot be used.

/// Why rules cannot be used; for who wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// The program cannot use any: another one, built with them, can.
    #[error("this program was built without rules of projects: use one that was built with the feature rules")]
    LeftOut,
    /// The document is not what it should be.
    #[error("the document cannot be used: {0}")]
    Document(String),
    /// Something is too large.
    #[error("{what} is larger than {bytes_max} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large it may be.
        bytes_max: usize,
    },
    /// The bundle is not what it should be.
    #[error("the bundle of rules cannot be read: {0}")]
    Bundle(String),
    /// A file is missing.
    #[error("the document names the file {0:?}, which is not in the bundle")]
    FileMissing(String),
    /// An expression is wrong.
    #[error("{place}: {error}: {expression}")]
    Expression {
        /// Where it is.
        place: String,
        /// What is wrong.
        error: String,
        /// The expression.
        expression: String,
    },
    /// The descriptor set is wrong.
    #[error("the descriptor cannot be used: {0}")]
    Descriptor(String),
    /// The schema is wrong, or can take too long.
    #[error("the schema cannot be used: {0}")]
    Schema(String),
    /// The module is wrong.
    #[error("the module cannot be used: {0}")]
    Module(String),
}
