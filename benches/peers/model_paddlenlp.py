"""Records what PaddleNLP's ErnieViLModel computes with small random weights, for tests/it/checkpoints.rs.

    pip download paddlenlp==2.8.1 --no-deps && unzip -q paddlenlp-*.whl -d WHEEL
    pip install paddlepaddle==2.6.2 "numpy<2"
    python benches/peers/model_paddlenlp.py WHEEL tests/goldens/paddlenlp

It imports the modelling code of the wheel and nothing else of the package, whose other dependencies are many: the base
classes that load and save models are replaced by empty ones. What is recorded are the weights as paddle.save writes a
state_dict, config.json, and the features of two captions and one image.
"""

import importlib
import json
import logging
import os
import sys
import types

import numpy as np
import paddle

WHEEL, OUT = sys.argv[1], sys.argv[2]


class PretrainedModel(paddle.nn.Layer):
    def __init__(self, config=None):
        super().__init__()
        self.config = config


class PretrainedConfig:
    def __init__(self, pad_token_id=0, return_dict=True, **_):
        self.pad_token_id = pad_token_id
        self.return_dict = self.use_return_dict = return_dict
        self.output_attentions = self.output_hidden_states = False


def module(name, path=None, **content):
    made = types.ModuleType(name)
    made.__dict__.update(content)
    if path is not None:
        made.__path__ = [os.path.join(WHEEL, *name.split("."))]
    sys.modules[name] = made


module("paddlenlp", path=True)
module("paddlenlp.layers", Linear=paddle.nn.Linear)
module("paddlenlp.utils", path=True)
module("paddlenlp.utils.log", logger=logging.getLogger())
module("paddlenlp.utils.converter", StateDictNameMapping=object)
module("paddlenlp.utils.env", CONFIG_NAME="config.json")
base = "paddlenlp.transformers"
module(base, path=True, PretrainedModel=PretrainedModel, register_base_model=lambda model: model)
module(f"{base}.model_utils", PretrainedModel=PretrainedModel)
module(
    f"{base}.configuration_utils",
    PretrainedConfig=PretrainedConfig,
    attribute_map=None,
    convert_to_legacy_config=None,
    flatten_model_config=None,
    standard_config_map=None,
)
module(f"{base}.utils", adapt_stale_fwd_patch=lambda _self, _name, forward: forward)
for package in ["clip", "ernie", "ernie_vil"]:
    module(f"{base}.{package}", path=True)
configuration = importlib.import_module(f"{base}.ernie_vil.configuration")
modeling = importlib.import_module(f"{base}.ernie_vil.modeling")

text = dict(
    vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=20, hidden_act="gelu", type_vocab_size=2, task_type_vocab_size=3, use_task_id=True,
    task_id=0, layer_norm_eps=1e-5,
)
vision = dict(
    hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8,
    hidden_act="quick_gelu", layer_norm_eps=1e-6,
)
model = modeling.ErnieViLModel(configuration.ErnieViLConfig(text_config=text, vision_config=vision))
for layer in model.sublayers(include_self=True):
    model._init_weights(layer)
random = np.random.RandomState(7)
for name, parameter in model.state_dict().items():
    # Around 1 where a normalisation multiplies.
    mean = 1 if ("norm" in name or "ln_" in name) and name.endswith("weight") else 0
    parameter.set_value(paddle.to_tensor((0.3 * random.randn(*parameter.shape) + mean).astype("float32")))
model.temperature.set_value(paddle.to_tensor(np.array([2.65926], "float32")))
model.eval()

ids = np.array([[1, 5, 6, 7, 2], [1, 9, 2, 0, 0]], "int64")
pixels = np.sin(np.arange(3 * 24 * 24)).astype("float32").reshape(1, 3, 24, 24)
recorded = {
    "ids": ids.tolist(),
    "text": model.get_text_features(paddle.to_tensor(ids)).numpy().tolist(),
    "image": model.get_image_features(paddle.to_tensor(pixels)).numpy().tolist(),
}
os.makedirs(OUT, exist_ok=True)
paddle.save(model.state_dict(), os.path.join(OUT, "model_state.pdparams"))
text["model_type"], vision["model_type"] = "ernie_vil_text_model", "ernie_vil_vision_model"
for name, content in [
    ("config.json", {"model_type": "ernie_vil", "text_config": text, "vision_config": vision}),
    ("io.json", recorded),
]:
    with open(os.path.join(OUT, name), "w") as file:
        json.dump(content, file, indent=1)
