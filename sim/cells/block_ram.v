// Two ports on 2048 bytes of BYTE bits, each port of its own width: what the block RAMs of ECP5 and Gowin have in common.
//
// Words: an address counts bits of 16384, so a byte's number is its bits 13..3, whatever the width. Widths 1, 2 and 4 reach the
// lower 8 bits of each byte; wider words are 1, 2 or 4 whole bytes, lowest first, and take one write enable a byte from the lowest
// address bits, which their width leaves free.
// Writing: a port that writes shows what it showed before (MODE 0), the new word (1) or the old word (2) afterwards.
// Reading takes one clock. A bit that is read by one port in the clock in which the other one writes it is unspecified in both
// families; here it is the complement of the old one, so that nothing can rely on it.
// INIT has two bytes every STRIDE bits.
// Reset clears the output whatever the clock enable: at the clock, or with ASYNC at once.
module tritloom_block_ram #(
    parameter BYTE = 9,
    parameter WIDTH_A = 36,
    parameter WIDTH_B = 36,
    parameter MODE_A = 0,
    parameter MODE_B = 0,
    parameter ASYNC = 0,
    parameter RESET_STOPS_WRITE = 0,
    parameter STRIDE = 2 * BYTE,
    parameter [1024*STRIDE-1:0] INIT = 0
) (
    input clk_a, input ce_a, input we_a, input rst_a, input [13:0] ad_a, input [4*BYTE-1:0] di_a, output [4*BYTE-1:0] do_a,
    input clk_b, input ce_b, input we_b, input rst_b, input [13:0] ad_b, input [4*BYTE-1:0] di_b, output [4*BYTE-1:0] do_b
);
    function integer valid_width(input integer width);
        valid_width = width == 1 || width == 2 || width == 4 || width == BYTE || width == 2*BYTE || width == 4*BYTE;
    endfunction

    generate
        if (BYTE != 8 && BYTE != 9) $fatal(1, "the block RAM model has bytes of 8 or 9 bits only");
        if (!valid_width(WIDTH_A) || !valid_width(WIDTH_B)) $fatal(1, "the block RAM model has no ports of this width");
        if (MODE_A < 0 || MODE_A > 2 || MODE_B < 0 || MODE_B > 2) $fatal(1, "the block RAM model has no such write mode");
    endgenerate

    reg [BYTE-1:0] store [0:2047];
    integer i;
    initial for (i = 0; i < 2048; i = i + 1) store[i] = INIT[STRIDE*(i/2) + BYTE*(i%2) +: BYTE];

    // Bits of byte `number` that a write at `address` changes.
    function [BYTE-1:0] mask(input integer width, input [13:0] address, input [10:0] number);
        reg [10:0] first;
        begin
            first = address[13:3];
            mask = 0;
            if (width < 8) begin
                if (number == first) mask = ((1 << width) - 1) << (address[2:0] & ~(width - 1));
            end else if (width == BYTE) begin
                if (number == first) mask = {BYTE{1'b1}};
            end else if (width == 2*BYTE) begin
                if (number[10:1] == first[10:1] && address[number[0]]) mask = {BYTE{1'b1}};
            end else begin
                if (number[10:2] == first[10:2] && address[number[1:0]]) mask = {BYTE{1'b1}};
            end
        end
    endfunction

    // Byte `number` of the word that is written, as the store has it.
    function [BYTE-1:0] placed(input integer width, input [13:0] address, input [10:0] number, input [4*BYTE-1:0] word);
        if (width < 8) placed = word[7:0] << (address[2:0] & ~(width - 1));
        else if (width == BYTE) placed = word[BYTE-1:0];
        else if (width == 2*BYTE) placed = word[BYTE*number[0] +: BYTE];
        else placed = word[BYTE*number[1:0] +: BYTE];
    endfunction

    function [10:0] byte_of(input integer width, input [13:0] address, input [1:0] lane);
        byte_of = width <= BYTE ? address[13:3] : width == 2*BYTE ? {address[13:4], lane[0]} : {address[13:5], lane};
    endfunction

    localparam LANES_A = WIDTH_A <= BYTE ? 1 : WIDTH_A / BYTE;
    localparam LANES_B = WIDTH_B <= BYTE ? 1 : WIDTH_B / BYTE;
    wire write_a = ce_a && we_a && !(RESET_STOPS_WRITE && rst_a);
    wire write_b = ce_b && we_b && !(RESET_STOPS_WRITE && rst_b);
    reg [4*BYTE-1:0] out_a = 0, out_b = 0;
    assign do_a = ASYNC && rst_a ? {4*BYTE{1'b0}} : out_a;
    assign do_b = ASYNC && rst_b ? {4*BYTE{1'b0}} : out_b;

    reg [4*BYTE-1:0] word_a, word_b;
    reg [10:0] at_a, at_b;
    reg [BYTE-1:0] mask_a, mask_b, byte_a, byte_b;
    integer a, b;

    always @(posedge clk_a) begin
        word_a = 0;
        for (a = 0; a < LANES_A; a = a + 1) begin
            at_a = byte_of(WIDTH_A, ad_a, a);
            mask_a = write_a ? mask(WIDTH_A, ad_a, at_a) : 0;
            byte_a = store[at_a];
            if (write_b) byte_a = byte_a ^ mask(WIDTH_B, ad_b, at_a);
            if (mask_a != 0) store[at_a] <= (store[at_a] & ~mask_a) | (placed(WIDTH_A, ad_a, at_a, di_a) & mask_a);
            if (MODE_A == 1) byte_a = (byte_a & ~mask_a) | (placed(WIDTH_A, ad_a, at_a, di_a) & mask_a);
            if (WIDTH_A < 8) byte_a = (byte_a[7:0] >> (ad_a[2:0] & ~(WIDTH_A - 1))) & ((1 << WIDTH_A) - 1);
            word_a[BYTE*a +: BYTE] = byte_a;
        end
        if (rst_a) out_a <= 0;
        else if (ce_a && !(we_a && MODE_A == 0)) out_a <= word_a;
    end

    always @(posedge clk_b) begin
        word_b = 0;
        for (b = 0; b < LANES_B; b = b + 1) begin
            at_b = byte_of(WIDTH_B, ad_b, b);
            mask_b = write_b ? mask(WIDTH_B, ad_b, at_b) : 0;
            byte_b = store[at_b];
            if (write_a) byte_b = byte_b ^ mask(WIDTH_A, ad_a, at_b);
            if (mask_b != 0) store[at_b] <= (store[at_b] & ~mask_b) | (placed(WIDTH_B, ad_b, at_b, di_b) & mask_b);
            if (MODE_B == 1) byte_b = (byte_b & ~mask_b) | (placed(WIDTH_B, ad_b, at_b, di_b) & mask_b);
            if (WIDTH_B < 8) byte_b = (byte_b[7:0] >> (ad_b[2:0] & ~(WIDTH_B - 1))) & ((1 << WIDTH_B) - 1);
            word_b[BYTE*b +: BYTE] = byte_b;
        end
        if (rst_b) out_b <= 0;
        else if (ce_b && !(we_b && MODE_B == 0)) out_b <= word_b;
    end
endmodule
