//! Evaluates expressions on an event. Every part is charged before it is evaluated, by the sizes of its operands.

use std::{cmp::Ordering, net::IpAddr};

use cel::{
    ExecutionError,
    common::{
        types::{CelBool, CelBytes, CelInt, CelList, CelMap, CelString, Kind},
        value::{CowVal, Val},
    },
};

use super::{
    CelExpression, CelFailure, ChangedObject, DataError, Json, MAX_TEXT,
    functions::environment,
    network::Network,
    time::CelTime,
    tree::{CelArithmetic, CelComparison, CelNode, Conversion, OfText, OfTexts},
};
use crate::{
    cloudevents,
    filter::{
        Subject,
        fuel::{Fuel, Overrun, PART},
    },
};

/// Cost per byte of searching a text.
const SEARCH: u64 = 2;

/// Cost per list element or object member of comparing containers.
pub(super) const ELEMENT: u64 = 40;

static TRUE: CelBool = CelBool::TRUE;
static FALSE: CelBool = CelBool::FALSE;

/// A value that lives in the event, in the expression, or in a loop around, or one of its own.
pub(super) type Evaluated<'b, 'v> = Result<CowVal<'b, 'v>, CelFailure>;

impl CelExpression {
    /// Returns whether the event matches.
    ///
    /// # Errors
    /// If the evaluation fails or the value is not a Boolean. The event then does not match.
    pub fn evaluate(&self, subject: &Subject) -> Result<bool, CelFailure> {
        self.decide(subject, &Fuel::new())
    }

    /// Evaluates within the remaining budget.
    pub(in crate::filter) fn decide(&self, subject: &Subject, fuel: &Fuel) -> Result<bool, CelFailure> {
        let value = CelScope::new(subject, fuel).value(&self.root)?;
        boolean_of(&*value).ok_or_else(|| CelFailure::NotBoolean(type_of(&*value)))
    }
}

/// The event, the remaining budget, and the variables of the loops around.
#[derive(Clone, Copy)]
pub(super) struct CelScope<'b, 'v> {
    pub(super) subject: &'v Subject<'v>,
    pub(super) fuel: &'v Fuel,
    pub(super) variables: Option<&'b Variable<'b, 'v>>,
}

/// The variable of a loop, and those of the loops around it.
pub(super) struct Variable<'b, 'v> {
    pub(super) value: &'b (dyn Val + 'v),
    pub(super) outer: Option<&'b Variable<'b, 'v>>,
}

impl<'b, 'v> CelScope<'b, 'v> {
    /// Outside of any loop.
    pub(super) fn new(subject: &'v Subject<'v>, fuel: &'v Fuel) -> Self {
        Self {
            subject,
            fuel,
            variables: None,
        }
    }

    pub(super) fn value(self, node: &'v CelNode) -> Evaluated<'b, 'v> {
        self.fuel.spend(PART)?;
        match node {
            CelNode::Literal(literal) => Ok(literal.to_val()),
            CelNode::List(list) => Ok(CowVal::Borrowed(list)),
            CelNode::NewList(nodes) => self.new_list(nodes),
            CelNode::NewMap(names, nodes) => self.new_map(names, nodes),
            CelNode::Network(network) => Ok(CowVal::Borrowed(network)),
            CelNode::Time(time) => Ok(CowVal::Borrowed(time)),
            CelNode::Variable(outward) => self.variable(*outward),
            CelNode::Attribute(name) => self.attribute(name),
            CelNode::Data => self.data(),
            CelNode::Request => match self.subject.request() {
                Some(request) => match request.value() {
                    Some(request) => Ok(CowVal::Borrowed(request)),
                    None => Err(CelFailure::Execution(DataError::TooManyValues.into())),
                },
                None => Err(missing("request")),
            },
            CelNode::Body => parsed(self.subject.body().map(Json::value)),
            CelNode::Change => Ok(CowVal::Borrowed(self.changed("change")?.change())),
            CelNode::Object => parsed(self.changed("object")?.object()),
            CelNode::OldObject => parsed(self.changed("oldObject")?.old_object()),
            CelNode::HasAttribute(name) => Ok(truth(self.subject.event().attribute(name).is_some())),
            CelNode::HasData => self.has_data().map(truth),
            CelNode::Field(operand, name) => index(self.value(operand)?, name, "_._"),
            CelNode::HasField(operand, name) => has_field(&*self.value(operand)?, name).map(truth),
            CelNode::Index(nodes) => {
                let [container, at] = self.values(nodes)?;
                if let Some(name) = at.downcast_ref::<CelString>() {
                    self.fuel.pass(name.inner().len())?;
                }
                let is_data = !matches!(nodes[1], CelNode::Literal(_));
                index(container, &*at, "_[_]").map_err(|failure| match failure {
                    // The key is a value of the data, which failures do not show.
                    CelFailure::Execution(ExecutionError::NoSuchKey(_)) if is_data => missing("such key"),
                    failure => failure,
                })
            }
            CelNode::Not(operand) => {
                let value = self.value(operand)?;
                let boolean = boolean_of(&*value).ok_or_else(|| overload("!_", &[&*value]))?;
                Ok(truth(!boolean))
            }
            CelNode::Negate(operand) => {
                let value = self.value(operand)?;
                let negator = value.as_negator().ok_or_else(|| overload("-_", &[&*value]))?;
                Ok(CowVal::Owned(negator.negate().map_err(CelFailure::Execution)?))
            }
            CelNode::And(nodes) => self.logic(nodes, "_&&_", false),
            CelNode::Or(nodes) => self.logic(nodes, "_||_", true),
            CelNode::Conditional(nodes) => {
                let [condition, then, otherwise] = &**nodes;
                let value = self.value(condition)?;
                match boolean_of(&*value) {
                    Some(true) => self.value(then),
                    Some(false) => self.value(otherwise),
                    None => Err(no_boolean(&*value)),
                }
            }
            CelNode::Equal(nodes) => self.equal(nodes).map(truth),
            CelNode::NotEqual(nodes) => self.equal(nodes).map(|equal| truth(!equal)),
            CelNode::Compare(operator, nodes) => self.compare(*operator, nodes).map(truth),
            CelNode::In(nodes) => self.contains(nodes).map(truth),
            CelNode::Calculate(operator, nodes) => self.calculate(*operator, nodes),
            CelNode::Matches(operand, pattern) => {
                let value = self.value(operand)?;
                match value.downcast_ref::<CelString>() {
                    Some(text) => Ok(truth(pattern.is_match(text.inner(), self.fuel)?)),
                    None => Err(of_types(
                        "matches",
                        vec![type_of(&*value), "regular expression".to_owned()],
                    )),
                }
            }
            CelNode::OfTexts(function, nodes) => self.of_texts(*function, nodes).map(truth),
            CelNode::OfText(function, operand) => self.of_text(*function, operand),
            CelNode::Size(operand) => self.size(operand),
            CelNode::Convert(conversion, operand) => self.convert(*conversion, operand),
            CelNode::ContainsIp(nodes) => self.contains_ip(nodes).map(truth),
            CelNode::ToTime(operand) => self.to_time(operand),
            CelNode::Quantify(quantifier, nodes) => self.quantify(*quantifier, nodes).map(truth),
            CelNode::Collect(nodes) => self.collect(nodes),
        }
    }

    fn values(self, nodes: &'v [CelNode; 2]) -> Result<[CowVal<'b, 'v>; 2], CelFailure> {
        let [left, right] = nodes;
        Ok([self.value(left)?, self.value(right)?])
    }

    pub(super) fn attribute(self, name: &str) -> Evaluated<'b, 'v> {
        match self.subject.event().attribute(name) {
            None => Err(missing(&format!("{name} in the event"))),
            Some(cloudevents::Value::Boolean(boolean)) => Ok(truth(*boolean)),
            Some(cloudevents::Value::Integer(integer)) => {
                Ok(CowVal::owned(CelInt::from(i64::from(*integer))))
            }
            Some(cloudevents::Value::String(text)) => Ok(CowVal::owned(CelString::from(&**text))),
        }
    }

    fn changed(self, variable: &str) -> Result<&'v ChangedObject<'v>, CelFailure> {
        self.subject.change().ok_or_else(|| missing(variable))
    }

    pub(super) fn data(self) -> Evaluated<'b, 'v> {
        match self.subject.data() {
            Err(DataError::Absent) => Err(missing("data in the event")),
            data => parsed(data.map(Json::value)),
        }
    }

    fn has_data(self) -> Result<bool, CelFailure> {
        match self.subject.data() {
            Ok(_) => Ok(true),
            Err(DataError::Absent) => Ok(false),
            Err(error) => Err(CelFailure::Execution(error.into())),
        }
    }

    /// `&&` and `||`: an operand equal to `decisive` decides, even if the other one fails.
    fn logic(self, nodes: &'v [CelNode; 2], operator: &'static str, decisive: bool) -> Evaluated<'b, 'v> {
        let [left, right] = nodes;
        let left = match self.value(left) {
            Ok(value) => boolean_of(&*value).ok_or_else(|| no_boolean(&*value)),
            Err(failure) => Err(failure),
        };
        if left == Ok(decisive) {
            return Ok(truth(decisive));
        }
        let value = self.value(right)?;
        match (left, boolean_of(&*value)) {
            (_, Some(right)) if right == decisive => Ok(truth(decisive)),
            (Ok(_), Some(_)) => Ok(truth(!decisive)),
            (Ok(_), None) => Err(of_types(operator, vec!["bool".to_owned(), type_of(&*value)])),
            (Err(CelFailure::Execution(ExecutionError::UnexpectedType { got, want })), _)
                if want == "bool" =>
            {
                Err(of_types(operator, vec![got, type_of(&*value)]))
            }
            (Err(failure), _) => Err(failure),
        }
    }

    fn equal(self, nodes: &'v [CelNode; 2]) -> Result<bool, CelFailure> {
        let [left, right] = self.values(nodes)?;
        self.pay_for_comparing(&*left, &*right)?;
        Ok(left.equals(&*right))
    }

    /// Charges for `left.equals(right)`, which traverses both in parallel as long as they could be equal.
    fn pay_for_comparing(self, left: &dyn Val, right: &dyn Val) -> Result<(), Overrun> {
        if let (Some(left), Some(right)) = (
            left.downcast_ref::<CelString>(),
            right.downcast_ref::<CelString>(),
        ) {
            return self.fuel.pass(left.inner().len().min(right.inner().len()));
        }
        if let (Some(left), Some(right)) = (left.downcast_ref::<CelBytes>(), right.downcast_ref::<CelBytes>())
        {
            return self.fuel.pass(left.inner().len().min(right.inner().len()));
        }
        if let (Some(left), Some(right)) = (left.downcast_ref::<CelList>(), right.downcast_ref::<CelList>()) {
            if left.len() != right.len() {
                return Ok(());
            }
            self.fuel.read(left.len(), ELEMENT)?;
            return std::iter::zip(left.inner(), right.inner())
                .try_for_each(|(left, right)| self.pay_for_comparing(&**left, &**right));
        }
        if let (Some(left), Some(right)) = (left.downcast_ref::<CelMap>(), right.downcast_ref::<CelMap>()) {
            if left.len() != right.len() {
                return Ok(());
            }
            self.fuel.read(left.len(), 3 * ELEMENT)?;
            // Compares with the entry of the same name in the other object.
            return left.iter().try_for_each(|(name, value)| {
                if let Some(name) = name.inner().downcast_ref::<CelString>() {
                    self.fuel.read(name.inner().len(), 2)?;
                }
                self.pay_for(&**value)
            });
        }
        Ok(())
    }

    /// Charges for traversing a whole value.
    pub(super) fn pay_for(self, value: &dyn Val) -> Result<(), Overrun> {
        if let Some(text) = value.downcast_ref::<CelString>() {
            self.fuel.pass(text.inner().len())
        } else if let Some(list) = value.downcast_ref::<CelList>() {
            self.fuel.read(list.len(), ELEMENT)?;
            list.iter().try_for_each(|value| self.pay_for(&**value))
        } else if let Some(map) = value.downcast_ref::<CelMap>() {
            self.fuel.read(map.len(), 3 * ELEMENT)?;
            map.iter().try_for_each(|(name, value)| {
                self.pay_for(name.inner())?;
                self.pay_for(&**value)
            })
        } else {
            Ok(())
        }
    }

    fn compare(self, operator: CelComparison, nodes: &'v [CelNode; 2]) -> Result<bool, CelFailure> {
        let [left, right] = self.values(nodes)?;
        let name = match operator {
            CelComparison::Less => "_<_",
            CelComparison::LessOrEqual => "_<=_",
            CelComparison::Greater => "_>_",
            CelComparison::GreaterOrEqual => "_>=_",
        };
        let unfit = || overload(name, &[&*left, &*right]);
        // The crate would copy values that it cannot compare.
        let comparer = left
            .as_comparer()
            .filter(|_| is_scalar(&*right))
            .ok_or_else(unfit)?;
        self.pay_for_comparing(&*left, &*right)?;
        let ordering = comparer.compare(&*right).map_err(|_| unfit())?;
        Ok(match operator {
            CelComparison::Less => ordering == Ordering::Less,
            CelComparison::LessOrEqual => ordering != Ordering::Greater,
            CelComparison::Greater => ordering == Ordering::Greater,
            CelComparison::GreaterOrEqual => ordering != Ordering::Less,
        })
    }

    fn contains(self, nodes: &'v [CelNode; 2]) -> Result<bool, CelFailure> {
        let [value, container] = self.values(nodes)?;
        let unfit = || overload("@in", &[&*value, &*container]);
        if let Some(list) = container.downcast_ref::<CelList>() {
            self.fuel.read(list.len(), ELEMENT / 4)?;
            for element in list.iter() {
                self.pay_for_comparing(&**element, &*value)?;
                if element.equals(&*value) {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        self.pay_for(&*value)?;
        let container = container.as_container().ok_or_else(unfit)?;
        container.contains(&*value).map_err(|_| unfit())
    }

    fn calculate(self, operator: CelArithmetic, nodes: &'v [CelNode; 2]) -> Evaluated<'b, 'v> {
        let [left, right] = self.values(nodes)?;
        let name = match operator {
            CelArithmetic::Add => "_+_",
            CelArithmetic::Subtract => "_-_",
            CelArithmetic::Multiply => "_*_",
            CelArithmetic::Divide => "_/_",
            CelArithmetic::Remainder => "_%_",
        };
        let unfit = || overload(name, &[&*left, &*right]);
        // The crate would copy operands that it cannot calculate with, and would concatenate lists.
        if left.get_type().kind() != right.get_type().kind() {
            return Err(unfit());
        }
        let text = left
            .downcast_ref::<CelString>()
            .zip(right.downcast_ref::<CelString>());
        if let (CelArithmetic::Add, Some((left, right))) = (operator, text) {
            let length = left.inner().len() + right.inner().len();
            if length > MAX_TEXT {
                return Err(CelFailure::TextTooLong);
            }
            self.fuel.pass(length)?;
            return Ok(CowVal::owned(CelString::from(
                [left.inner(), right.inner()].concat(),
            )));
        }
        if !matches!(left.get_type().kind(), Kind::Int | Kind::UInt | Kind::Double) {
            return Err(unfit());
        }
        let result = match operator {
            CelArithmetic::Add => left.as_adder().map(|left| left.add(&*right)),
            CelArithmetic::Subtract => left.as_subtractor().map(|left| left.sub(&*right)),
            CelArithmetic::Multiply => left.as_multiplier().map(|left| left.mul(&*right)),
            CelArithmetic::Divide => left.as_divider().map(|left| left.div(&*right)),
            CelArithmetic::Remainder => left.as_modder().map(|left| left.modulo(&*right)),
        };
        match result {
            None | Some(Err(ExecutionError::UnsupportedBinaryOperator(..))) => Err(unfit()),
            Some(Err(error)) => Err(CelFailure::Execution(error)),
            Some(Ok(value)) => Ok(CowVal::Owned(value.into_owned())),
        }
    }

    fn of_texts(self, function: OfTexts, nodes: &'v [CelNode; 2]) -> Result<bool, CelFailure> {
        let values = self.values(nodes)?;
        let [Some(text), Some(other)] = values.each_ref().map(|value| value.downcast_ref::<CelString>())
        else {
            return Err(overload(
                function.name(),
                &values.each_ref().map(|value| &**value),
            ));
        };
        let (text, other) = (text.inner(), other.inner());
        Ok(match function {
            OfTexts::StartsWith => {
                self.fuel.pass(text.len().min(other.len()))?;
                text.starts_with(other)
            }
            OfTexts::EndsWith => {
                self.fuel.pass(text.len().min(other.len()))?;
                text.ends_with(other)
            }
            OfTexts::Contains => {
                self.fuel.read(text.len().saturating_add(other.len()), SEARCH)?;
                text.contains(other)
            }
        })
    }

    fn of_text(self, function: OfText, operand: &'v CelNode) -> Evaluated<'b, 'v> {
        let value = self.value(operand)?;
        let text = value
            .downcast_ref::<CelString>()
            .ok_or_else(|| overload(function.name(), &[&*value]))?
            .inner();
        self.fuel.read(text.len(), 1)?;
        let text = match function {
            OfText::LowerAscii => text.to_ascii_lowercase(),
            OfText::UpperAscii => text.to_ascii_uppercase(),
            OfText::Trim => text.trim().to_owned(),
        };
        Ok(CowVal::owned(CelString::from(text)))
    }

    fn size(self, operand: &'v CelNode) -> Evaluated<'b, 'v> {
        let value = self.value(operand)?;
        if let Some(text) = value.downcast_ref::<CelString>() {
            self.fuel.pass(text.inner().len())?;
        }
        let sized = matches!(
            value.get_type().kind(),
            Kind::String | Kind::Bytes | Kind::List | Kind::Map
        );
        let sizer = value.as_sizer().filter(|_| sized);
        let size = sizer.ok_or_else(|| overload("size", &[&*value]))?.size();
        Ok(CowVal::owned(size))
    }

    fn convert(self, conversion: Conversion, operand: &'v CelNode) -> Evaluated<'b, 'v> {
        let value = self.value(operand)?;
        if let Some(time) = value.downcast_ref::<CelTime>() {
            return match conversion {
                Conversion::String => Ok(CowVal::owned(CelString::from(time.to_string()))),
                Conversion::Int => Ok(CowVal::owned(CelInt::from(time.seconds()))),
                _ => Err(overload(conversion.name(), &[&*value])),
            };
        }
        if let Some(text) = value.downcast_ref::<CelString>() {
            if conversion == Conversion::String {
                return Ok(value);
            }
            // An unparsable number is copied into the error.
            self.fuel.read(text.inner().len(), 2)?;
        }
        let arguments = [value];
        match environment().find_overload(conversion.name(), &arguments) {
            Some(function) => function(arguments.into()).map_err(CelFailure::Execution),
            None => Err(overload(conversion.name(), &[&*arguments[0]])),
        }
    }

    /// `timestamp`, of a text or of the seconds since 1970.
    fn to_time(self, operand: &'v CelNode) -> Evaluated<'b, 'v> {
        let value = self.value(operand)?;
        let time = if let Some(text) = value.downcast_ref::<CelString>() {
            self.fuel.pass(text.inner().len())?;
            CelTime::parse(text.inner())
        } else if let Some(seconds) = value.downcast_ref::<CelInt>() {
            CelTime::of_seconds(*seconds.inner())
        } else if value.downcast_ref::<CelTime>().is_some() {
            return Ok(value);
        } else {
            return Err(overload("timestamp", &[&*value]));
        };
        time.map(CowVal::owned).ok_or(CelFailure::NoTime)
    }

    fn contains_ip(self, nodes: &'v [CelNode; 2]) -> Result<bool, CelFailure> {
        let [network, address] = self.values(nodes)?;
        let (Some(Network(network)), Some(address)) = (
            network.downcast_ref::<Network>(),
            address.downcast_ref::<CelString>(),
        ) else {
            return Err(overload("containsIP", &[&*network, &*address]));
        };
        // Every address is shorter than the texts rejected here.
        let address = address.inner();
        let address: Option<IpAddr> = (address.len() <= 64).then(|| address.parse().ok()).flatten();
        address
            .map(|address| network.contains(&address))
            .ok_or(CelFailure::NoAddress)
    }
}

/// Returns the entry of a container at a name or position.
fn index<'b, 'v>(container: CowVal<'b, 'v>, at: &dyn Val, operator: &'static str) -> Evaluated<'b, 'v> {
    let unfit = |container: &dyn Val| overload(operator, &[container, at]);
    match container {
        CowVal::Borrowed(container) => {
            let indexer = container.as_indexer().ok_or_else(|| unfit(container))?;
            indexer
                .get(at)
                .map_err(|error| of_index(error, || unfit(container)))
        }
        CowVal::Owned(container) => {
            let r#type = type_of(&*container);
            let unfit = || of_types(operator, vec![r#type.clone(), type_of(at)]);
            let entry = container.into_indexer().ok_or_else(unfit)?.steal(at);
            entry.map(CowVal::Owned).map_err(|error| of_index(error, unfit))
        }
    }
}

fn of_index(error: ExecutionError, unfit: impl FnOnce() -> CelFailure) -> CelFailure {
    match error {
        ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_) => CelFailure::Execution(error),
        _ => unfit(),
    }
}

fn has_field(container: &dyn Val, name: &CelString<'static>) -> Result<bool, CelFailure> {
    let unfit = || overload("_._", &[container, name]);
    match container.as_indexer().ok_or_else(unfit)?.get(name) {
        Ok(_) => Ok(true),
        Err(ExecutionError::NoSuchKey(_)) => Ok(false),
        Err(error) => Err(of_index(error, unfit)),
    }
}

fn is_scalar(value: &dyn Val) -> bool {
    !matches!(value.get_type().kind(), Kind::List | Kind::Map | Kind::Opaque)
}

pub(super) fn truth<'b, 'v>(boolean: bool) -> CowVal<'b, 'v> {
    CowVal::Borrowed(if boolean { &TRUE } else { &FALSE })
}

pub(super) fn boolean_of(value: &dyn Val) -> Option<bool> {
    value.downcast_ref::<CelBool>().map(|boolean| *boolean.inner())
}

pub(super) fn type_of(value: &dyn Val) -> String {
    value.get_type().name().to_owned()
}

pub(super) fn no_boolean(value: &dyn Val) -> CelFailure {
    CelFailure::Execution(ExecutionError::UnexpectedType {
        got: type_of(value),
        want: "bool".to_owned(),
    })
}

/// Returns a value of JSON, if it could be parsed.
fn parsed<'b, 'v>(value: Result<&'b (dyn Val + 'v), DataError>) -> Evaluated<'b, 'v> {
    match value {
        Ok(value) => Ok(CowVal::Borrowed(value)),
        Err(error) => Err(CelFailure::Execution(error.into())),
    }
}

pub(super) fn missing(what: &str) -> CelFailure {
    CelFailure::Execution(ExecutionError::no_such_key(what))
}

pub(super) fn overload(operator: &str, values: &[&dyn Val]) -> CelFailure {
    of_types(operator, values.iter().map(|value| type_of(*value)).collect())
}

pub(super) fn of_types(operator: &str, types: Vec<String>) -> CelFailure {
    CelFailure::Execution(ExecutionError::no_such_overload(operator, types))
}
