//! Compiles the crate anew when a migration is added; the macro alone notices changed files only.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
