//! Evaluates what goes through a list or a map, and what makes one. Every element, and every byte that is copied into
//! a new list or map, is charged, so the budget bounds loops in loops and their memory.

use std::collections::HashMap;

use cel::common::{
    types::{CelBytes, CelList, CelMap, CelMapKey, CelString},
    value::{CowVal, Val},
};

use super::{
    CelFailure,
    evaluate::{CelScope, ELEMENT, Evaluated, Variable, boolean_of, missing, no_boolean, overload},
    tree::{CelNode, Quantifier},
};
use crate::filter::fuel::{Overrun, PART};

/// Cost per byte of a text that is copied into a new list or map, where it stays until the evaluation ends.
const KEPT: u64 = 1;

impl<'b, 'v> CelScope<'b, 'v> {
    pub(super) fn variable(self, outward: usize) -> Evaluated<'b, 'v> {
        let mut all = std::iter::successors(self.variables, |variable| variable.outer);
        // The compiler has counted the loops around.
        let variable = all.nth(outward).ok_or_else(|| missing("variable"))?;
        Ok(CowVal::Borrowed(variable.value))
    }

    /// `exists`, `all` and `exists_one`. As for `||` and `&&`, `exists` and `all` ignore a failed element if another
    /// one decides.
    pub(super) fn quantify(
        self,
        quantifier: Quantifier,
        nodes: &'v [CelNode; 2],
    ) -> Result<bool, CelFailure> {
        let [range, condition] = nodes;
        let range = self.value(range)?;
        let (mut failed, mut count) = (None, 0_usize);
        for element in self.elements(&*range)? {
            match (quantifier, self.condition(condition, element)) {
                (Quantifier::Exists, Ok(true)) => return Ok(true),
                (Quantifier::All, Ok(false)) => return Ok(false),
                (Quantifier::ExistsOne, Ok(holds)) => count += usize::from(holds),
                (_, Ok(_)) => {}
                (Quantifier::ExistsOne, Err(failure)) | (_, Err(failure @ CelFailure::TooExpensive)) => {
                    return Err(failure);
                }
                (_, Err(failure)) => failed = failed.or(Some(failure)),
            }
        }
        match (failed, quantifier) {
            (Some(failure), _) => Err(failure),
            (None, Quantifier::Exists) => Ok(false),
            (None, Quantifier::All) => Ok(true),
            (None, Quantifier::ExistsOne) => Ok(count == 1),
        }
    }

    /// `map` and `filter`.
    pub(super) fn collect(self, nodes: &'v [CelNode; 3]) -> Evaluated<'b, 'v> {
        let [range, condition, value] = nodes;
        let range = self.value(range)?;
        let mut list = Vec::new();
        for element in self.elements(&*range)? {
            if self.condition(condition, element)? {
                let variable = self.bound(element);
                let value = self.within(&variable).value(value)?;
                list.push(self.kept(value)?);
            }
        }
        Ok(CowVal::owned(CelList::from(list)))
    }

    fn condition(self, condition: &'v CelNode, element: &(dyn Val + 'v)) -> Result<bool, CelFailure> {
        self.fuel.spend(PART)?;
        let variable = self.bound(element);
        let value = self.within(&variable).value(condition)?;
        boolean_of(&*value).ok_or_else(|| no_boolean(&*value))
    }

    fn bound<'s>(self, element: &'s (dyn Val + 'v)) -> Variable<'s, 'v>
    where
        'b: 's,
    {
        Variable {
            value: element,
            outer: self.variables,
        }
    }

    /// Inside a loop with this variable.
    fn within<'s>(self, variable: &'s Variable<'s, 'v>) -> CelScope<'s, 'v> {
        CelScope {
            subject: self.subject,
            fuel: self.fuel,
            variables: Some(variable),
        }
    }

    /// The elements of a list, or the keys of a map in their order, so that every evaluation does the same.
    fn elements<'s>(self, range: &'s (dyn Val + 'v)) -> Result<Vec<&'s (dyn Val + 'v)>, CelFailure> {
        if let Some(list) = range.downcast_ref::<CelList>() {
            self.fuel.read(list.len(), 1)?;
            return Ok(list.inner().iter().map(|element| &**element).collect());
        }
        let Some(map) = range.downcast_ref::<CelMap>() else {
            return Err(overload("a loop", &[range]));
        };
        self.fuel.read(map.len(), 3 * ELEMENT)?;
        let mut keys: Vec<_> = map.inner().keys().collect();
        for key in &keys {
            self.pay_for(key.inner())?;
        }
        keys.sort_unstable();
        Ok(keys.into_iter().map(CelMapKey::inner).collect())
    }

    pub(super) fn new_list(self, nodes: &'v [CelNode]) -> Evaluated<'b, 'v> {
        let elements = nodes.iter().map(|node| self.kept(self.value(node)?));
        let list: Vec<_> = elements.collect::<Result<_, CelFailure>>()?;
        Ok(CowVal::owned(CelList::from(list)))
    }

    pub(super) fn new_map(self, names: &'v [CelString<'static>], nodes: &'v [CelNode]) -> Evaluated<'b, 'v> {
        let mut map: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::new();
        for (name, node) in names.iter().zip(nodes) {
            self.fuel.spend(3 * ELEMENT)?;
            let value = self.kept(self.value(node)?)?;
            map.insert(CelMapKey::from(name.inner()), value);
        }
        Ok(CowVal::owned(CelMap::from(map)))
    }

    /// Takes a value into a new list or map, by a copy if it belongs to the event or the expression.
    fn kept(self, value: CowVal<'_, 'v>) -> Result<Box<dyn Val + 'v>, CelFailure> {
        self.fuel.spend(ELEMENT)?;
        match &value {
            CowVal::Borrowed(value) => self.pay_for_keeping(*value)?,
            // The elements of a new list or map were charged when they were taken into it.
            CowVal::Owned(value) if is_container(&**value) => {}
            CowVal::Owned(value) => self.pay_for_keeping(&**value)?,
        }
        Ok(value.into_owned())
    }

    /// Charges for copying a whole value.
    fn pay_for_keeping(self, value: &dyn Val) -> Result<(), Overrun> {
        if let Some(text) = value.downcast_ref::<CelString>() {
            self.fuel.read(text.inner().len(), KEPT)
        } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
            self.fuel.read(bytes.inner().len(), KEPT)
        } else if let Some(list) = value.downcast_ref::<CelList>() {
            self.fuel.read(list.len(), ELEMENT)?;
            list.iter().try_for_each(|value| self.pay_for_keeping(&**value))
        } else if let Some(map) = value.downcast_ref::<CelMap>() {
            self.fuel.read(map.len(), 3 * ELEMENT)?;
            map.iter().try_for_each(|(name, value)| {
                self.pay_for_keeping(name.inner())?;
                self.pay_for_keeping(&**value)
            })
        } else {
            Ok(())
        }
    }
}

fn is_container(value: &dyn Val) -> bool {
    value.downcast_ref::<CelList>().is_some() || value.downcast_ref::<CelMap>().is_some()
}
