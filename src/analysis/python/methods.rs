//! Methods that are known only to read their object.
//!
//! Any other method call counts as a change of the object. The list only spares steps a wait: what a run really
//! changed is found by comparing, so a class that uses one of these names otherwise costs time and no right answer.

use ruff_python_ast::ExprCall;

/// Of text, collections, arrays, tables and fitted models. Sorted.
#[rustfmt::skip]
const READING: &[&str] = &[
    "agg", "aggregate", "all", "any", "argmax", "argmin", "argsort", "assign", "astype", "capitalize",
    "casefold", "center", "clip", "copy", "corr", "count", "cov", "cumprod", "cumsum", "decision_function",
    "decode", "describe", "diagonal", "diff", "difference", "dot", "drop", "drop_duplicates", "dropna",
    "elements", "encode", "endswith", "fillna", "find", "findall", "flatten", "format", "fullmatch", "get",
    "get_params", "groupby", "head", "hex", "index", "intersection", "isalnum", "isalpha", "isdigit",
    "isdisjoint", "isin", "isna", "isnull", "issubset", "issuperset", "item", "items", "iterrows",
    "itertuples", "join", "keys", "ljust", "lower", "lstrip", "match", "max", "mean", "median", "melt",
    "memory_usage", "merge", "min", "mode", "most_common", "nlargest", "nonzero", "notna", "nsmallest",
    "nunique", "partition", "pivot", "pivot_table", "predict", "predict_proba", "prod", "ptp", "quantile",
    "query", "ravel", "rename", "repeat", "replace", "reset_index", "reshape", "rfind", "rindex", "rjust",
    "rolling", "round", "rsplit", "rstrip", "score", "search", "searchsorted", "select_dtypes", "set_index",
    "sort_index", "sort_values", "split", "splitlines", "squeeze", "startswith", "std", "strip", "sum",
    "swapcase", "symmetric_difference", "tail", "title", "to_csv", "to_dict", "to_frame", "to_json",
    "to_list", "to_numpy", "to_parquet", "to_string", "tobytes", "tolist", "trace", "transform",
    "translate", "transpose", "union", "unique", "upper", "value_counts", "values", "var", "zfill",
];

/// Whether a call of this method leaves its object as it is, as far as its name and arguments tell.
pub fn only_reads(method: &str, call: &ExprCall) -> bool {
    let in_place = |name: &str| matches!(name, "inplace" | "out" | "copy");
    READING.binary_search(&method).is_ok()
        && call
            .arguments
            .keywords
            .iter()
            .all(|keyword| keyword.arg.as_ref().is_some_and(|name| !in_place(name)))
}

#[cfg(test)]
mod tests {
    use super::READING;

    #[test]
    fn the_list_is_sorted() {
        assert!(READING.is_sorted());
    }
}
