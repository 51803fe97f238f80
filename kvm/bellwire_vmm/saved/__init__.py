"""What a machine is made of besides its RAM, taken apart and put together; and the file that holds it all."""
