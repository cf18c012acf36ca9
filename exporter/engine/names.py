"""Names of the files in an engine directory."""

ENGINE_JSON = "engine.json"
SIGNATURE = "model.sig"  # of all the others, engine.json too, so that no list can hold it
MODEL = "model.onnx"
PARITY = "parity.json"
TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"  # the default; others by name, as transformers stores them
TEMPLATES = "additional_chat_templates"
GENERATION = "generation_config.json"
