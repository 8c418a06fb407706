//! A cell and its workflow metadata: parsing, validation, the schema.
