//! The built-in functions (section 3.5): which takes how many arguments.

use super::{
    ParseProblem,
    tree::{Call, SqlNode},
};

impl Call {
    /// Returns the call of the function with this name, in any case, if it exists and takes this many arguments.
    pub(super) fn new(name: &str, arguments: Vec<SqlNode>) -> Result<Self, ParseProblem> {
        let name = name.to_ascii_uppercase();
        let given = arguments.len();
        let wrong = |takes| ParseProblem::Arguments {
            function: name.clone(),
            takes,
            given,
        };
        let mut arguments = arguments.into_iter();
        let mut next = || arguments.next().map(Box::new);
        let one = |call: fn(Box<SqlNode>) -> Self, argument: Option<Box<SqlNode>>| match argument {
            Some(argument) if given == 1 => Ok(call(argument)),
            _ => Err(wrong("one argument")),
        };
        match name.as_str() {
            "ABS" => one(Self::Abs, next()),
            "BOOL" => one(Self::Bool, next()),
            "INT" => one(Self::Int, next()),
            "LENGTH" => one(Self::Length, next()),
            "LOWER" => one(Self::Lower, next()),
            "STRING" => one(Self::String, next()),
            "TRIM" => one(Self::Trim, next()),
            "UPPER" => one(Self::Upper, next()),
            "LEFT" | "RIGHT" => match (next(), next()) {
                (Some(text), Some(count)) if given == 2 && name == "LEFT" => Ok(Self::Left { text, count }),
                (Some(text), Some(count)) if given == 2 => Ok(Self::Right { text, count }),
                _ => Err(wrong("two arguments")),
            },
            "SUBSTRING" => match (next(), next(), next()) {
                (Some(text), Some(position), length) if given <= 3 => Ok(Self::Substring {
                    text,
                    position,
                    length,
                }),
                _ => Err(wrong("two or three arguments")),
            },
            "CONCAT_WS" => match next() {
                Some(delimiter) => Ok(Self::ConcatWs {
                    delimiter,
                    texts: arguments.collect(),
                }),
                None => Err(wrong("one argument or more")),
            },
            "CONCAT" => Ok(Self::Concat(arguments.collect())),
            _ => Err(ParseProblem::UnknownFunction { name }),
        }
    }
}
