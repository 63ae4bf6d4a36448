//! An expression's value for an event.

use cel::{
    Context, ExecutionError, IdedExpr, Value,
    common::{
        traits::Indexer,
        types::{CelBool, CelInt, CelString, Kind, Type},
        value::{CowVal, Val},
    },
    context::VariableResolver,
};

use super::{
    DataError, Expression, Failure,
    check::{DATA, EVENT, constant_position},
    constant::Constant,
    functions,
};
use crate::{cloudevents, filter::Subject};

static EVENT_TYPE: Type = Type::simple_type(Kind::Opaque, "event");

impl Expression {
    /// Whether the event passes.
    ///
    /// # Errors
    /// Why the expression has no value, or one that is no Boolean: then the event does not pass.
    pub fn evaluate(&self, subject: &Subject) -> Result<bool, Failure> {
        self.value(&self.root, subject, |value| {
            let boolean = value.downcast_ref::<CelBool>().map(|boolean| *boolean.inner());
            boolean.ok_or_else(|| Failure::NotBoolean(value.get_type().name().to_owned()))
        })?
    }

    /// Calls `see` with the value of a part of the expression.
    pub(super) fn value<T>(
        &self,
        part: &IdedExpr,
        subject: &Subject,
        see: impl FnOnce(&dyn Val) -> T,
    ) -> Result<T, Failure> {
        let names = Names {
            event: EventValue(subject),
            constants: &self.constants,
        };
        let mut context = Context::with_env(functions::environment());
        context.set_variable_resolver(&names);
        let value = Value::resolve_val(part, &context).map_err(Failure::Execution)?;
        Ok(see(value.as_ref()))
    }
}

/// What the names in an expression stand for.
struct Names<'a> {
    event: EventValue<'a>,
    constants: &'a [Constant],
}

impl VariableResolver for Names<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        if name == EVENT {
            return Some(CowVal::Borrowed(&self.event));
        }
        let constant = self.constants.get(constant_position(name)?)?;
        Some(CowVal::Borrowed(constant))
    }
}

/// The event as a value with fields.
#[derive(Clone, Copy, Debug)]
struct EventValue<'a>(&'a Subject<'a>);

impl Val for EventValue<'_> {
    fn get_type(&self) -> &Type {
        &EVENT_TYPE
    }

    fn cel_type() -> &'static Type {
        &EVENT_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Indexer for EventValue<'_> {
    fn get<'b, 'v>(&'b self, field: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = field.downcast_ref::<CelString>().map_or("", |name| name.inner());
        if name == DATA {
            return match self.0.data() {
                Ok(data) => Ok(CowVal::Borrowed(data.value())),
                Err(DataError::Absent) => Err(ExecutionError::no_such_key("data in the event")),
                Err(error) => Err(error.into()),
            };
        }
        match self.0.event().attribute(name) {
            None => Err(ExecutionError::no_such_key(&format!("{name} in the event"))),
            Some(cloudevents::Value::Boolean(boolean)) => Ok(CowVal::owned(CelBool::from(*boolean))),
            Some(cloudevents::Value::Integer(integer)) => {
                Ok(CowVal::owned(CelInt::from(i64::from(*integer))))
            }
            Some(cloudevents::Value::String(text)) => Ok(CowVal::owned(CelString::from(text.to_string()))),
        }
    }

    fn steal<'v>(self: Box<Self>, field: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(field).map(CowVal::into_owned)
    }
}
