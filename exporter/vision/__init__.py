"""Pictures, frames and sound to what a tower takes, and prompts with them to what a text model
takes: numpy alone; Pillow decodes files.

`processor` has the record that an engine keeps, `kinds` one file a family, `pictures` opens files,
`prompts` puts what a picture becomes into a text.
"""
