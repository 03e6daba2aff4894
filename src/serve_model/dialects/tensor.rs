//! What JSON holds in place of a tensor: numbers or base64 strings, nested or flat.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use std::fmt;

/// The elements of a tensor in their order, whatever their nesting was.
///
/// Numbers become little-endian float32 at once: the bytes that a binary request has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// No elements at all.
    None,
    /// Little-endian float32.
    Numbers(Vec<u8>),
    /// Strings, decoded from base64.
    Strings(Vec<Bytes>),
}

/// Bytes that JSON holds as base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64(pub Bytes);

impl Base64 {
    fn decode<E: Error>(text: &str) -> Result<Self, E> {
        let bytes = STANDARD.decode(text.trim());
        bytes
            .map(|bytes| Self(bytes.into()))
            .map_err(|error| E::custom(format!("a string is not base64: {error}")))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Decodes where the text lies, without a copy of it.
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Base64;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a base64 string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Base64, E> {
                Base64::decode(text)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Elements;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array of numbers or of base64 strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Elements, A::Error> {
                let mut elements = Elements::None;
                while items.next_element_seed(Into(&mut elements))?.is_some() {}
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(Whole)
    }
}

/// Adds one element, or every element of a nested array. `serde_json` bounds the nesting.
struct Into<'a>(&'a mut Elements);

impl<'de> DeserializeSeed<'de> for Into<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Into<'_> {
    fn number<E: Error>(self, value: f64) -> Result<(), E> {
        if matches!(self.0, Elements::None) {
            *self.0 = Elements::Numbers(Vec::new());
        }
        match self.0 {
            Elements::Numbers(bytes) => bytes.extend_from_slice(&(value as f32).to_le_bytes()),
            _ => return Err(E::invalid_type(Unexpected::Float(value), &"a string, as before it")),
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Into<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, a base64 string or an array of them")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if matches!(self.0, Elements::None) {
            *self.0 = Elements::Strings(Vec::new());
        }
        match self.0 {
            Elements::Strings(strings) => strings.push(Base64::decode(text)?.0),
            _ => return Err(E::invalid_type(Unexpected::Str("…"), &"a number, as before it")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Into(self.0))?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<Elements, &str>) {
        match (serde_json::from_str::<Elements>(json), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{json}"),
            (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{json}: {error}"),
            (found, expected) => panic!("{json}: {found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn elements_come_flat_or_nested() {
        let numbers =
            |values: &[f32]| Elements::Numbers(values.iter().flat_map(|value| value.to_le_bytes()).collect());
        check("[]", Ok(Elements::None));
        check("[[],[[]]]", Ok(Elements::None));
        check("[1, -2, 0.5]", Ok(numbers(&[1.0, -2.0, 0.5])));
        check("[[1], [[-2]], 0.5]", Ok(numbers(&[1.0, -2.0, 0.5])));
        check("[1e39]", Ok(numbers(&[f32::INFINITY])));
        check(r#"["SU1H", ["\u0053U1H"]]"#, Ok(Elements::Strings(vec!["IMG".into(), "IMG".into()])));
        check(r#"["SU1H", 1]"#, Err("a string, as before it"));
        check(r#"[1, "SU1H"]"#, Err("a number, as before it"));
        check(r#"["*"]"#, Err("not base64"));
        check("[true]", Err("a number, a base64 string"));
        check("[null]", Err("a number, a base64 string"));
        check("7", Err("an array of numbers"));
        check(&"[".repeat(200), Err("recursion limit"));
    }
}
