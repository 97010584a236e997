//! How structures and numbers of the wire are declared.

/// Declares a structure of unaligned little- or big-endian fields that can be read from and written to bytes as it is.
macro_rules! wire_struct {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident { $($(#[$field_meta:meta])* $field_visibility:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable, zerocopy::Unaligned,
        )]
        $visibility struct $name { $($(#[$field_meta])* $field_visibility $field: $type,)* }
    };
}

/// Declares a number newtype with named constants. Unlike an enum it can hold, print and pass on any value a peer sends.
macro_rules! open_values {
    (
        $(#[$meta:meta])*
        pub struct $name:ident($word:ty) {
            $($(#[$constant_meta:meta])* $constant:ident = $value:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $word);

        impl $name {
            $($(#[$constant_meta])* pub const $constant: Self = Self($value);)*

            /// All values that have a name, with it.
            pub const NAMED: &[(Self, &'static str)] = &[$((Self::$constant, stringify!($constant)),)*];

            /// The name of this value, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($constant)),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                let width = 2 + 2 * size_of::<$word>();
                match self.name() {
                    Some(name) => write!(formatter, "{name} ({:#0width$x})", self.0),
                    None => write!(formatter, "{:#0width$x}", self.0),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, formatter)
            }
        }
    };
}

pub(crate) use {open_values, wire_struct};
