"""Many settings × many seeds: settings that differ in numbers are trained as one program."""
