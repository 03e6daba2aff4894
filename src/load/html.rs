//! page
pub(crate) fn page(_report: &crate::load::report::Report) -> String {
    String::new()
}
