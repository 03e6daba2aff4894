//! Just enough of Python's pickle format to read the index of a PyTorch checkpoint.
//!
//! candle has a reader for the zip form of checkpoints, but it does not know the older form that the public
//! checkpoints have, and it trusts its input. Here, nothing is ever called or imported: a pickle is a list of
//! nodes, and what it would have called is only named.
//!
//! **Invariant**: memory stays within a small multiple of the pickle's length, whatever the pickle says:
//! each instruction makes at most one node, nodes refer to each other by index, and every length is compared
//! with the bytes that are left.
use std::collections::HashMap;

/// Index of a node.
pub type Id = usize;

/// A value of a pickle.
#[derive(Debug, PartialEq)]
pub enum Node {
    /// `None`, and everything that no index needs: floats, and integers over 64 bits except PyTorch's own.
    Nothing,
    /// A boolean or an integer.
    Integer(i64),
    /// A string.
    Text(String),
    /// A class or function, as `module.name`.
    Global(String),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// A dictionary in its own order.
    Dictionary(Vec<(Id, Id)>),
    /// A call that Python would make: what is called, and with what.
    Call(Id, Id),
    /// A reference to something outside the pickle: a storage.
    Persistent(Id),
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    /// The value of the whole.
    pub root: Id,
}

impl Pickle {
    /// Reads one pickle from the start of `bytes`; also returns how many bytes it took.
    pub fn read(bytes: &[u8]) -> Result<(Self, usize), String> {
        let mut machine = Machine { bytes, ..Machine::default() };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok((Self { nodes: machine.nodes, root }, machine.at))
    }

    /// The node at an index that came from this pickle.
    #[must_use]
    pub fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::Nothing)
    }

    /// The text at an index.
    #[must_use]
    pub fn text(&self, id: Id) -> Option<&str> {
        if let Node::Text(text) = self.node(id) { Some(text) } else { None }
    }

    /// The name of the class or function at an index.
    #[must_use]
    pub fn global(&self, id: Id) -> Option<&str> {
        if let Node::Global(name) = self.node(id) { Some(name) } else { None }
    }

    /// The non-negative number at an index.
    #[must_use]
    pub fn size(&self, id: Id) -> Option<usize> {
        if let Node::Integer(value) = self.node(id) { usize::try_from(*value).ok() } else { None }
    }

    /// The elements of the tuple or list at an index.
    #[must_use]
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Node::Sequence(ids) = self.node(id) { Some(ids) } else { None }
    }

    /// The tuple of non-negative numbers at an index.
    #[must_use]
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.sequence(id)?.iter().map(|id| self.size(*id)).collect()
    }

    /// The entries of the dictionary at an index.
    #[must_use]
    pub fn dictionary(&self, id: Id) -> Option<&[(Id, Id)]> {
        if let Node::Dictionary(entries) = self.node(id) { Some(entries) } else { None }
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("the pickle ends too early")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian unsigned number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u32, String> {
        Ok(self.take(N)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn text(&mut self, length: usize) -> Result<String, String> {
        Ok(std::str::from_utf8(self.take(length)?).map_err(|_| "a text is not UTF-8")?.to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("the pickle ends in a name")?;
        let line = self.text(length)?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, String> {
        // Values under an open mark belong to whoever closes it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the pickle takes a value that is not there".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the pickle's stack is empty".to_owned())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("the pickle closes a mark that is not open")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, length: usize) -> Result<(), String> {
        let mut ids = (0..length).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        ids.reverse();
        self.push(Node::Sequence(ids));
        Ok(())
    }

    fn top(&mut self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the pickle's stack is empty".to_owned())
    }

    fn append(&mut self, ids: Vec<Id>) -> Result<(), String> {
        let top = self.top()?;
        let Node::Sequence(list) = &mut self.nodes[top] else {
            return Err("the pickle appends to what is no list".to_owned());
        };
        list.extend(ids);
        Ok(())
    }

    fn set_items(&mut self, ids: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        let Node::Dictionary(entries) = &mut self.nodes[top] else {
            return Err("the pickle sets items of what is no dictionary".to_owned());
        };
        let (pairs, []) = ids.as_chunks::<2>() else {
            return Err("the pickle sets a key without a value".to_owned());
        };
        entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn put(&mut self, slot: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), String> {
        let id =
            self.memo.get(&slot).ok_or_else(|| format!("the pickle recalls {slot}, which it never kept"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let dictionary =
            matches!(&self.nodes[callable], Node::Global(name) if name == "collections.OrderedDict");
        self.push(if dictionary { Node::Dictionary(Vec::new()) } else { Node::Call(callable, arguments) });
        Ok(())
    }

    /// A number of up to 255 bytes; PyTorch writes one of ten as the magic of its older form, which is kept
    /// as its lowest 64 bits.
    fn long(&mut self) -> Result<(), String> {
        let length = self.number::<1>()? as usize;
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut low = [if negative { 0xFF } else { 0 }; 8];
        for (to, from) in low.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.push(Node::Integer(i64::from_le_bytes(low)));
        Ok(())
    }

    /// Carries out one instruction; false at the end of the pickle.
    fn step(&mut self) -> Result<bool, String> {
        let code = self.take(1)?[0];
        match code {
            0x80 => drop(self.take(1)?),
            b'.' => return Ok(false),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Node::Nothing),
            0x88 | 0x89 => self.push(Node::Integer(i64::from(code == 0x88))),
            b'G' => {
                self.take(8)?;
                self.push(Node::Nothing);
            }
            b'K' | b'M' | b'J' => {
                let value = match code {
                    b'K' => i64::from(self.number::<1>()?),
                    b'M' => i64::from(self.number::<2>()?),
                    _ => i64::from(self.number::<4>()?.cast_signed()),
                };
                self.push(Node::Integer(value));
            }
            0x8a => self.long()?,
            b'X' | 0x8c => {
                let length = if code == b'X' { self.number::<4>()? } else { self.number::<1>()? };
                let text = self.text(length as usize)?;
                self.push(Node::Text(text));
            }
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.push(Node::Global(name));
            }
            b')' | b']' => self.push(Node::Sequence(Vec::new())),
            b'}' => self.push(Node::Dictionary(Vec::new())),
            b't' => {
                let ids = self.pop_to_mark()?;
                self.push(Node::Sequence(ids));
            }
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b'a' => {
                let id = self.pop()?;
                self.append(vec![id])?;
            }
            b'e' => {
                let ids = self.pop_to_mark()?;
                self.append(ids)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let ids = self.pop_to_mark()?;
                self.set_items(&ids)?;
            }
            b'q' => {
                let slot = self.number::<1>()?;
                self.put(slot)?;
            }
            b'r' => {
                let slot = self.number::<4>()?;
                self.put(slot)?;
            }
            b'h' => {
                let slot = self.number::<1>()?;
                self.get(slot)?;
            }
            b'j' => {
                let slot = self.number::<4>()?;
                self.get(slot)?;
            }
            b'R' | 0x81 => self.call()?,
            // Attributes of the object below; an index needs none of them.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            _ => {
                return Err(format!("the pickle has the instruction {code:#04x}, which no checkpoint needs"));
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dictionary_of_tuples_reads_back() {
        // {"a": (1, 300, None), "b": [-2]} with "a" recalled from the memo.
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01M\x2c\x01N\x87X\x01\x00\x00\x00b]J\xfe\xff\xff\xffau.rest";
        let (pickle, length) = Pickle::read(bytes).unwrap();
        assert_eq!(&bytes[length..], b"rest");
        let entries = pickle.dictionary(pickle.root).unwrap();
        assert_eq!(pickle.text(entries[0].0), Some("a"));
        let tuple = pickle.sequence(entries[0].1).unwrap();
        assert_eq!((pickle.size(tuple[0]), pickle.size(tuple[1])), (Some(1), Some(300)));
        assert_eq!(pickle.node(tuple[2]), &Node::Nothing);
        let list = pickle.sequence(entries[1].1).unwrap();
        assert_eq!((pickle.node(list[0]), pickle.size(list[0])), (&Node::Integer(-2), None));
    }

    #[test]
    fn pickles_that_lie_are_refused() {
        for (bytes, word) in [
            (&b""[..], "ends too early"),
            (b"X\xff\xff\xff\xffabc", "ends too early"),
            (b"cmodule", "ends in a name"),
            (b"h\x07.", "never kept"),
            (b"R.", "not there"),
            (b"K\x01(0.", "instruction 0x30"),
            (b"K\x01(R.", "not there"),
            (b"t.", "not open"),
            (b"K\x01K\x02a.", "no list"),
            (b"}(K\x01u.", "without a value"),
            (b".", "not there"),
        ] {
            let error = Pickle::read(bytes).unwrap_err();
            assert!(error.contains(word), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn deep_nesting_needs_no_stack() {
        let mut bytes = vec![b')'];
        bytes.extend(std::iter::repeat_n(0x85, 1_000_000));
        bytes.push(b'.');
        assert!(Pickle::read(&bytes).is_ok());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(&b"(NKXc)]}tauqhRQbs.\x85\x86\x8a"[..])], 0..200,
        )) {
            let _ = Pickle::read(&bytes);
        }
    }
}
