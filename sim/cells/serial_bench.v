// The host's side of a serial line, in front of the pins of a board: bytes in, bytes out, as the core's own link has them.
//
// A byte is taken when rx__valid and rx__ready are high and sent with one start and one stop bit. A byte that has been received is
// held until tx__ready is high; the host must take it within the ten bits of the next.
module tritloom_serial_bench #(parameter DIVISOR = 16) (
    input clk, input rst,
    input rx__valid, input [7:0] rx__payload, output rx__ready,
    output reg tx__valid, output reg [7:0] tx__payload, input tx__ready,
    output to_board, input from_board
);
    // The board's clock generator locks first, see pll.v.
    reg [7:0] settling = 0;
    reg [8:0] shift = 9'h1ff;
    reg [3:0] left = 0, missing = 0;
    reg [7:0] got = 0;
    reg [31:0] send_timer = 0, receive_timer = 0;
    assign to_board = shift[0];
    assign rx__ready = left == 0 && settling == 8'hff;

    always @(posedge clk) begin
        if (settling != 8'hff) settling <= settling + 1;
        if (left == 0) begin
            if (rx__valid && rx__ready) begin
                shift <= {rx__payload, 1'b0};
                left <= 10;
                send_timer <= DIVISOR - 1;
            end
        end else if (send_timer != 0) send_timer <= send_timer - 1;
        else begin
            shift <= {1'b1, shift[8:1]};
            left <= left - 1;
            send_timer <= DIVISOR - 1;
        end

        if (tx__ready) tx__valid <= 0;
        if (missing == 0) begin
            if (!from_board && settling == 8'hff) begin
                missing <= 9;
                receive_timer <= DIVISOR + DIVISOR / 2 - 1;  // the middle of the first data bit
            end
        end else if (receive_timer != 0) receive_timer <= receive_timer - 1;
        else begin
            missing <= missing - 1;
            receive_timer <= DIVISOR - 1;
            if (missing != 1) got <= {from_board, got[7:1]};
            else if (from_board) begin
                tx__valid <= 1;
                tx__payload <= got;
            end
        end
        if (rst) tx__valid <= 0;
    end
endmodule
