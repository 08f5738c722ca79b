"""Families that ask a picture a fixed number of questions: query tokens between tower and decoder."""

from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    Kosmos2_5Config,
    Kosmos2_5ForConditionalGeneration,
    Kosmos2_5ImageProcessor,
    Kosmos2_5Processor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

WITHOUT = CHATML_WITH.format(
    image=""
)  # these processors put the picture before the text themselves
PICTURE = VISION | {"image_size": 28, "patch_size": 14}
QUERIES = VISION | {"cross_attention_frequency": 1, "max_position_embeddings": 512}
# The processors take one picture and put it first; the models raise without one.
ONE_PICTURE = frozenset({"two pictures", "text only"})
# transformers computes the last Q-Former layer's text half and throws it away: its gradients are zeros,
# which the self-test refuses (`model.self_test=warn` goes on).
DEAD_HALF = frozenset({"trains", "nf4 language", "nf4 vision"})


def _opt(processor):
    sizes = {key: TEXT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "tie_word_embeddings": False}
    return {"model_type": "opt"} | sizes | ends(processor)


def save_blip_2(folder):
    """BLIP-2: four query tokens, an OPT decoder."""
    processor = Blip2Processor(
        image_processor=BlipImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=byte_tokenizer(chat_template=WITHOUT),
        num_query_tokens=4,
    )
    config = Blip2Config(
        text_config=_opt(processor),
        vision_config=PICTURE,
        qformer_config=QUERIES,
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    save(folder, redraw(Blip2ForConditionalGeneration(config)), processor)


def save_instructblip(folder):
    """InstructBLIP: the Q-Former reads the question too, through a tokenizer of its own."""
    processor = InstructBlipProcessor(
        image_processor=BlipImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=byte_tokenizer(chat_template=WITHOUT),
        qformer_tokenizer=byte_tokenizer(),
        num_query_tokens=4,
    )
    config = InstructBlipConfig(
        text_config=_opt(processor),
        vision_config=PICTURE,
        qformer_config=QUERIES | {"vocab_size": len(processor.qformer_tokenizer)},
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    save(folder, redraw(InstructBlipForConditionalGeneration(config)), processor)


def _kosmos_text(processor):
    return {"embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4} | ends(processor)


def save_kosmos_2(folder):
    """Kosmos-2: 64 latent queries; the processor writes where they stand beside the tokens."""
    side = {"height": 28, "width": 28}
    processor = Kosmos2Processor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=side),
        tokenizer=byte_tokenizer(chat_template=WITHOUT, unk_token="<unk>", bos_token="<s>"),
        num_patch_index_tokens=64,  # ids after <unk> stand for the queries
    )
    config = Kosmos2Config(
        text_config=_kosmos_text(processor), vision_config=PICTURE, latent_query_num=64
    )
    save(folder, redraw(Kosmos2ForConditionalGeneration(config)), processor)


def save_kosmos_2_5(folder):
    """Kosmos-2.5: a Pix2Struct tower over patches that carry their row and column."""
    processor = Kosmos2_5Processor(
        image_processor=Kosmos2_5ImageProcessor(
            patch_size={"height": 16, "width": 16}, max_patches=64
        ),
        tokenizer=byte_tokenizer(
            chat_template=WITHOUT,
            bos_token="<s>",
            image_token="<s>",
            boi_token="<image>",
            eoi_token="</image>",
        ),
        num_image_tokens=4,
    )
    config = Kosmos2_5Config(
        text_config=_kosmos_text(processor),
        vision_config=VISION | {"head_dim": 16, "max_num_patches": 4096},
        latent_query_num=4,
    )
    save(folder, redraw(Kosmos2_5ForConditionalGeneration(config)), processor)
