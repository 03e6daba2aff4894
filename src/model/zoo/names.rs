//! timm's names of tensors for the families that candle-transformers names otherwise.
//!
//! candle's repositories of `EfficientNet` and `ConvMixer` weights use the names of torchvision and of the paper's
//! authors. A file is read with either kind: whichever it holds the classifier under.

/// Most families: candle-transformers asks for timm's own names.
pub(super) fn same(name: &str) -> String {
    name.to_owned()
}

/// `features.S.R.block.P…` becomes `blocks.{S-1}.R.…`; `features.0` is the stem, the last one the head.
///
/// A block's parts are expand, depthwise, squeeze and excite, project; the first stage has no expand.
pub(super) fn efficientnet(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        ["classifier", _, leaf] => format!("classifier.{leaf}"),
        ["features", "0", part, leaf] => outer(["conv_stem", "bn1"], part, leaf),
        ["features", _, part, leaf] => outer(["conv_head", "bn2"], part, leaf),
        ["features", stage, repeat, "block", part, inner, leaf] => {
            let expands = stage != "1";
            let [Ok(stage), Ok(part)] = [stage.parse::<usize>(), part.parse::<usize>()] else {
                return name.to_owned();
            };
            let part = if expands { part } else { part + 1 };
            let module = match (part, inner, expands) {
                (0, "0", _) | (3, "0", false) => "conv_pw",
                (0, _, _) | (1, "1", false) => "bn1",
                (1, "0", _) => "conv_dw",
                (1, _, true) | (3, "1", false) => "bn2",
                (2, "fc1", _) => "se.conv_reduce",
                (2, _, _) => "se.conv_expand",
                (3, "0", true) => "conv_pwl",
                _ => "bn3",
            };
            format!("blocks.{}.{repeat}.{module}.{leaf}", stage.saturating_sub(1))
        }
        _ => name.to_owned(),
    }
}

/// A convolution (`0`) or its batch norm (`1`) outside the blocks.
fn outer([convolution, batch_norm]: [&str; 2], part: &str, leaf: &str) -> String {
    format!("{}.{leaf}", if part == "0" { convolution } else { batch_norm })
}

/// The authors' one flat sequence: `0` and `2` are the stem, `3` to `22` the blocks, `25` the classifier.
pub(super) fn convmixer(name: &str) -> String {
    let Some((first, rest)) = name.split_once('.') else { return name.to_owned() };
    match first.parse::<usize>() {
        Ok(25) => format!("head.{rest}"),
        Ok(index @ 3..) => format!("blocks.{}.{rest}", index - 3),
        Ok(_) => format!("stem.{name}"),
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_timms() {
        for (asked, timm) in [
            ("features.0.0.weight", "conv_stem.weight"),
            ("features.0.1.bias", "bn1.bias"),
            ("features.1.0.block.0.0.weight", "blocks.0.0.conv_dw.weight"),
            ("features.1.0.block.0.1.weight", "blocks.0.0.bn1.weight"),
            ("features.1.1.block.1.fc1.bias", "blocks.0.1.se.conv_reduce.bias"),
            ("features.1.0.block.2.0.weight", "blocks.0.0.conv_pw.weight"),
            ("features.1.0.block.2.1.running_var", "blocks.0.0.bn2.running_var"),
            ("features.3.2.block.0.0.weight", "blocks.2.2.conv_pw.weight"),
            ("features.3.2.block.0.1.bias", "blocks.2.2.bn1.bias"),
            ("features.3.2.block.1.0.weight", "blocks.2.2.conv_dw.weight"),
            ("features.3.2.block.1.1.weight", "blocks.2.2.bn2.weight"),
            ("features.3.2.block.2.fc2.weight", "blocks.2.2.se.conv_expand.weight"),
            ("features.3.2.block.3.0.weight", "blocks.2.2.conv_pwl.weight"),
            ("features.3.2.block.3.1.weight", "blocks.2.2.bn3.weight"),
            ("features.8.0.weight", "conv_head.weight"),
            ("features.8.1.weight", "bn2.weight"),
            ("classifier.1.bias", "classifier.bias"),
        ] {
            assert_eq!(efficientnet(asked), timm);
        }
        for (asked, timm) in [
            ("0.weight", "stem.0.weight"),
            ("2.running_mean", "stem.2.running_mean"),
            ("3.0.fn.0.weight", "blocks.0.0.fn.0.weight"),
            ("22.3.bias", "blocks.19.3.bias"),
            ("25.bias", "head.bias"),
        ] {
            assert_eq!(convmixer(asked), timm);
        }
    }
}
